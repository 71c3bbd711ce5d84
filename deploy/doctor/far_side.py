"""The other process of a trial: it owns a pool, grants its blocks, and looks at what came."""

import contextlib
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Literal, TypeAlias

from deploy.doctor.places import (
    BLOCK_BYTES,
    GENERATION,
    NUM_BLOCKS,
    Place,
    content,
    makers_at,
)
from kvtransfer.device import read_bytes
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import ExportUnavailable, TransferError
from kvtransfer.protocol import KvReceiver
from kvtransfer.receiver import receive_by
from kvtransfer.tcp_door import DoorSettings
from runtime.errors import StartupError
from runtime.logging import configure_logging
from scheduling.kv_export import KvExport
from worker.transports import gpu_memory

# Starting Python, importing torch, making a context on a GPU.
_ANSWER_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 5.0

_Command: TypeAlias = Literal["verify", "end"]


@dataclass(frozen=True, slots=True)
class _Failed:
    problem: str


class FarSide:
    """A process that offers a pool by one transport, until the `with` block ends."""

    def __init__(self, place: Place, transport: str, door: DoorSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, place, transport, door)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        # Ctrl-C is for the doctor, whose end of the connection tells the other process: that
        # inherits what is held back, from its very start.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            if self._process.pid is not None:
                self._process.kill()
                self._process.join(_END_TIMEOUT_S)
            raise
        finally:
            theirs.close()

    def __enter__(self) -> "FarSide":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._connection.send("end")
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_END_TIMEOUT_S)
        self._connection.close()

    def export(self) -> KvExport:
        """Of its pool, once that is ready. Raises: ExportUnavailable."""
        answer = self._answer()
        if not isinstance(answer, KvExport):
            raise ExportUnavailable(
                "the process with the target's pool made none", "see its lines above"
            )
        return answer

    def verify(self) -> None:
        """Raises: ExportUnavailable where other bytes came than were sent."""
        with contextlib.suppress(OSError):  # it has ended: said by the missing answer
            self._connection.send("verify")
        if self._answer() is not True:
            raise ExportUnavailable(
                "other bytes arrived than were sent", "do not use this transport here"
            )

    def _answer(self) -> object:
        try:
            if self._connection.poll(_ANSWER_TIMEOUT_S):
                answer = self._connection.recv()
                if isinstance(answer, _Failed):
                    raise ExportUnavailable(*_in_two(answer.problem))
                return answer
        except (EOFError, OSError):
            self._process.join(_END_TIMEOUT_S)
            code = self._process.exitcode
            raise ExportUnavailable(
                f"the process with the target's pool ended (exit code {code})",
                "see its lines above",
            ) from None
        raise ExportUnavailable(
            f"the process with the target's pool does not answer for {_ANSWER_TIMEOUT_S:g} s",
            "try again",
        )


def _in_two(problem: str) -> tuple[str, str]:
    what, _, fix = problem.partition("; ")
    return what, fix or "see above"


def _serve(commands: Connection, place: Place, name: str, door: DoorSettings) -> None:
    configure_logging("doctor", level="error")
    try:
        receiver = _receiver(place, name, door)
    except (TransferError, StartupError) as error:
        commands.send(_Failed(str(error)))
        return
    try:
        commands.send(receiver.export())
        while commands.poll(_ANSWER_TIMEOUT_S):
            command: _Command = commands.recv()
            if command == "end":
                return
            expected = content()
            commands.send(read_bytes(receiver.memory(), 0, len(expected)) == expected)
    except (EOFError, BrokenPipeError):
        return
    finally:
        receiver.close()


def _receiver(place: Place, name: str, door: DoorSettings) -> KvReceiver:
    transport = makers_at(place, door)[name]()
    memory = None if place.gpu is None else gpu_memory(place.gpu)
    owner = PoolOwner(f"doctor-{multiprocessing.current_process().pid}", 1)
    receiver = receive_by([transport], owner, NUM_BLOCKS, BLOCK_BYTES, memory)
    receiver.expect(range(NUM_BLOCKS), [GENERATION] * NUM_BLOCKS)
    return receiver
