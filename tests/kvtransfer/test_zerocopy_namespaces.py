"""A device that holds packets back while the source of their bytes is overwritten.

A queue of the kernel with a limited rate stands for a slow network card: what lies in it is not
copied yet.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog

from deploy.local.settings import ROOT
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S, patterned_pool
from kvtransfer.whole_pool_testing import wait_for

BLOCK_BYTES, NUM_BLOCKS, SEED = 4 << 10, 8, 9
ALL = tuple(range(NUM_BLOCKS))
# All blocks take two seconds; the push has less, and the connection may send them at once.
RATE, PUSH_TIMEOUT_S, FIRST_WINDOW_PACKETS = "128kbit", 0.2, 100
# The other end: pushes once, overwrites its pool as soon as the push has returned, says so.
SENDER = """
import sys
from kvtransfer.batches import PushSettings
from kvtransfer.errors import TransferError
from kvtransfer.protocol import BlockMoves
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import patterned_pool
from kvtransfer.zerocopy import ZeroCopy
from scheduling.kv_export import KvExport
address, token, num_blocks, block_bytes, seed, timeout_s, use = sys.argv[1:]
n, size = int(num_blocks), int(block_bytes)
export = KvExport("tcp", address, n, size, "decode-0", 1, "", token)
pool = patterned_pool(n, size, int(seed))
transport = TcpTransport(settings=PushSettings(zerocopy=ZeroCopy[use]))
sender = transport.connect(export, sender_id="prefill-0#1", block_bytes=size)
print("connected", flush=True)
sys.stdin.readline()
moves = BlockMoves("r/0", tuple(range(n)), tuple(range(n)), (1,) * n)
try:
    sender.push(memoryview(pool), moves, timeout_s=float(timeout_s))
    word = "done"
except TransferError as error:
    word = error.code
pool[:] = bytes(len(pool))
print(word, flush=True)
sys.stdin.readline()
"""
# The other end again: one send, a reset at once; has the device let go of the bytes by then?
HASTY = """
import socket, sys
from kvtransfer.tcp_stream import Stream
from kvtransfer.zerocopy import ZeroCopy
host, port, num_bytes = sys.argv[1:]
stream = Stream(socket.create_connection((host, int(port)), 10.0), ZeroCopy.INSIST)
print("connected", flush=True)
sys.stdin.readline()
stream.send_blocks(memoryview(b"frame"), [memoryview(bytes(int(num_bytes)))], lambda: None)
print(stream.reset(release_timeout_s=0.0), flush=True)
"""


@dataclass(frozen=True)
class Namespace:
    """A second network stack, and a cable between it and ours."""

    name: str
    # The end of the cable over there.
    inner: str
    our_address: str


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=PATIENCE_S)


def heard(process: subprocess.Popen[str]) -> str:
    """The next word that is no line of the log."""
    assert process.stdout is not None
    return next((line.strip() for line in process.stdout if len(line.split()) == 1), "")


def start(namespace: Namespace, script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace.name, sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def slow_down(namespace: Namespace) -> None:
    """What leaves from over there queues up from now on."""
    slow = f"tc qdisc add dev {namespace.inner} root tbf rate {RATE} burst 4kb limit 1mb"
    try:
        run(f"ip netns exec {namespace.name} {slow}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no queue with a rate: {error.stderr.decode().strip()}")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("this machine has no ip or no tc command")
    pid = os.getpid()
    name, cable, inner = f"kz{pid}", f"kza{pid}", f"kzb{pid}"
    ours, theirs = (f"10.204.{pid >> 6 & 255}.{(pid & 63) * 4 + last}" for last in (1, 2))
    try:
        run(f"ip netns add {name}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no right to make a network namespace: {error.stderr.decode().strip()}")
    try:
        run(f"ip link add {cable} type veth peer name {inner} netns {name}")
    except subprocess.CalledProcessError as error:
        run(f"ip netns del {name}")
        pytest.skip(f"no cable into a network namespace: {error.stderr.decode().strip()}")
    try:
        run(f"ip addr add {ours}/30 dev {cable}")
        run(f"ip link set {cable} up")
        run(f"ip -n {name} addr add {theirs}/30 dev {inner}")
        run(f"ip -n {name} link set {inner} up")
        window = f"initcwnd {FIRST_WINDOW_PACKETS}"
        run(f"ip -n {name} route add {ours}/32 dev {inner} {window}")
        yield Namespace(name, inner, ours)
    finally:
        # The namespace takes its end along, but not at once.
        run(f"ip link del {cable}")
        run(f"ip netns del {name}")


@pytest.mark.parametrize("use", ["AUTO", "INSIST"])
def test_what_a_slow_device_still_holds_is_not_overwritten(namespace: Namespace, use: str) -> None:
    transport = TcpTransport(DoorSettings(namespace.our_address))
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    export, source = receiver.export(), patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    numbers = (NUM_BLOCKS, BLOCK_BYTES, SEED, PUSH_TIMEOUT_S)
    arguments = [export.address, export.token, *map(str, numbers), use]
    receiver.expect(ALL, [1] * NUM_BLOCKS)
    with (
        structlog.testing.capture_logs() as lines,
        start(namespace, SENDER, *arguments) as process,
    ):
        try:
            assert process.stdin is not None
            assert heard(process) == "connected"
            slow_down(namespace)
            process.stdin.write("go\n")
            process.stdin.flush()
            assert heard(process) == "kv_transfer_timeout"
            # Either all of it was on its way already, or the receiver gives it up.
            wait_for(
                lambda: (
                    receiver.poll(ALL, [1] * NUM_BLOCKS).num_arrived > 0
                    or any(line["event"] == "kv_link_dropped" for line in lines)
                )
            )
            for block_id in ALL:
                if receiver.poll([block_id], [1]).num_arrived:
                    at = slice(block_id * BLOCK_BYTES, (block_id + 1) * BLOCK_BYTES)
                    assert receiver.buffer()[at] == memoryview(source)[at]
        finally:
            process.kill()
            receiver.close()


def test_a_reset_tells_that_a_device_still_reads_when_its_time_is_over(
    namespace: Namespace,
) -> None:
    with socket.create_server((namespace.our_address, 0)) as ear:
        address = (namespace.our_address, str(ear.getsockname()[1]))
        with start(namespace, HASTY, *address, str(NUM_BLOCKS * BLOCK_BYTES)) as process:
            try:
                assert process.stdin is not None
                assert heard(process) == "connected"
                slow_down(namespace)
                process.stdin.write("go\n")
                process.stdin.flush()
                assert heard(process) == "False"
            finally:
                process.kill()
