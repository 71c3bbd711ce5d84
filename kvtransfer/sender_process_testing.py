"""For tests: a sender in a process of its own that can be killed, stopped, or damaged."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer import cuda_ipc, nixl, tcp
from kvtransfer.batches import PushSettings, plain_copy
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import DeviceMemory, KvSource
from kvtransfer.device_testing import FAKE_DEVICE, FakeDevice, FaultyDevice
from kvtransfer.errors import TransferError
from kvtransfer.nixl import NixlTransport
from kvtransfer.protocol import BlockMoves, CopyBytes, KvSender, PushReceipt, Transport
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import PATIENCE_S, DyingCopy, damaging_copy, patterned_pool
from scheduling.kv_export import KvExport

_Bytes: TypeAlias = npt.NDArray[np.uint8]

Fault: TypeAlias = Literal["none", "damage", "die_halfway", "stall_halfway"]


@dataclass(frozen=True, slots=True)
class SenderSpec:
    """What a `SenderProcess` connects to and how it misbehaves."""

    export: KvExport
    sender_id: str
    # Its pool is patterned_pool(num_blocks, export.block_bytes, seed).
    num_blocks: int
    seed: int
    fault: Fault = "none"
    # The faults strike at this copy, counted from 1.
    at_copy: int = 1
    checksum_fraction: float = 1.0
    max_batch_bytes: int = 8 << 20
    # Over TCP: its pool is on a fake device, and faults strike where blocks leave it.
    is_staged: bool = False


class PushRefused(Exception):
    """The other process's push raised a TransferError with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SenderProcess:
    """A sender in a process of its own, which can be killed or stopped."""

    def __init__(self, spec: SenderSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(spec, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "SenderProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._connection.close()

    def connect(self) -> None:
        """Wait until it has connected. Raises: PushRefused."""
        self._connection.send(None)
        self._answer()

    def begin_push(self, moves: BlockMoves) -> None:
        """Start a push; `finish_push` has its outcome."""
        self._connection.send(moves)

    def finish_push(self) -> PushReceipt:
        """Raises: PushRefused; EOFError where the process died."""
        receipt = self._answer()
        if not isinstance(receipt, PushReceipt):
            raise TypeError(f"unexpected answer {receipt!r}")
        return receipt

    def push(self, moves: BlockMoves) -> PushReceipt:
        """Push and wait."""
        self.begin_push(moves)
        return self.finish_push()

    def wait_until_stalled(self) -> None:
        """Wait for a `stall_halfway` sender to be in the middle of its copy."""
        if self._answer() != "stalled":
            raise RuntimeError("the sender did not stall")

    def resume(self) -> None:
        """Let a stalled sender go on."""
        self._connection.send("resume")

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP makes it stand still wherever it is."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has taken the process apart."""
        self._process.kill()
        self.wait_until_dead()

    def wait_until_dead(self) -> int | None:
        """Wait for the process's end; its exit code, negative for a signal."""
        self._process.join(PATIENCE_S)
        return self._process.exitcode

    def _answer(self) -> object:
        if not self._connection.poll(PATIENCE_S):
            raise TimeoutError("the sender process does not answer")
        answer: object = self._connection.recv()
        if isinstance(answer, tuple):
            raise PushRefused(*answer)
        return answer


def _serve(spec: SenderSpec, commands: Connection) -> None:
    pool = patterned_pool(spec.num_blocks, spec.export.block_bytes, spec.seed)
    settings = PushSettings(
        checksum_fraction=spec.checksum_fraction,
        max_batch_bytes=spec.max_batch_bytes,
        copy_bytes=_faulty_copy(spec, commands),
    )
    transport = _transport_of(spec, settings)
    source: KvSource = memoryview(pool)
    if isinstance(transport, CudaIpcTransport | StagedTcpTransport):
        source = transport.new_pool(bytes(pool))
    sender: KvSender | None = None
    while True:
        moves: BlockMoves | None = commands.recv()
        try:
            if sender is None:
                sender = transport.connect(
                    spec.export, sender_id=spec.sender_id, block_bytes=spec.export.block_bytes
                )
            if moves is None:
                commands.send("connected")
            else:
                commands.send(sender.push(source, moves, timeout_s=PATIENCE_S))
        except TransferError as error:
            commands.send((error.code, str(error)))


def _transport_of(spec: SenderSpec, settings: PushSettings) -> Transport:
    if spec.is_staged:
        fake = FakeDevice(copy_bytes=settings.copy_bytes, strikes_leaving=True)
        return StagedTcpTransport(lambda: fake, settings=settings)
    if spec.export.transport == tcp.NAME:
        return TcpTransport(settings=settings)
    if spec.export.transport == nixl.NAME:
        return NixlTransport(settings=settings)
    if spec.export.transport == "gloo":
        # Only here: torch takes a process a second to import.
        from kvtransfer.group_transport import GroupTransport
        from kvtransfer.process_group import Gloo

        return GroupTransport(Gloo(), settings=settings)
    if spec.export.transport == cuda_ipc.NAME:
        device = _device_of(spec, settings)
        return CudaIpcTransport(lambda: device, settings=settings)
    return SharedMemoryTransport(settings=settings)


def _device_of(spec: SenderSpec, settings: PushSettings) -> DeviceMemory:
    if spec.export.host.endswith(FAKE_DEVICE):
        return FakeDevice(copy_bytes=settings.copy_bytes)
    # Torch takes seconds to import, and most senders do without.
    from kvtransfer.cuda_memory import CudaMemory

    device = CudaMemory.of_device(0)
    return device if spec.fault == "none" else FaultyDevice(device, settings.copy_bytes)


def _faulty_copy(spec: SenderSpec, commands: Connection) -> CopyBytes:
    if spec.fault == "damage":
        return damaging_copy
    if spec.fault == "die_halfway":
        return DyingCopy(spec.at_copy)
    if spec.fault == "stall_halfway":
        return _StallForever(commands, spec.at_copy)
    return plain_copy


class _StallForever:
    """Stops halfway through the n-th copy, says so, and waits to be killed or resumed."""

    def __init__(self, commands: Connection, at_copy: int) -> None:
        self._commands = commands
        self._copies_left = at_copy

    def __call__(self, target: _Bytes, source: _Bytes) -> None:
        self._copies_left -= 1
        half = len(target) // 2
        plain_copy(target[:half], source[:half])
        if self._copies_left == 0:
            self._commands.send("stalled")
            if self._commands.poll(PATIENCE_S):
                self._commands.recv()
        plain_copy(target[half:], source[half:])
