"""TCP between two network namespaces: another address, another stack, a cable that can be pulled.

Delay and loss come from the kernel's netem where it has one; `test_tcp.py` has a fake network for
everywhere else.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from deploy.local.settings import ROOT
from kvtransfer.protocol import KvReceiver
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S, patterned_pool
from runtime.clock import MonotonicClock

BLOCK_BYTES, NUM_BLOCKS, SEED = 256 << 10, 64, 9
ALL = tuple(range(NUM_BLOCKS))
# The other end: pushes the pool a number of times, and says how each push ended.
SENDER = """
import sys
from kvtransfer.errors import TransferError
from kvtransfer.protocol import BlockMoves
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import patterned_pool
from scheduling.messages import KvExport
address, token, incarnation, num_blocks, block_bytes, seed, timeout_s = sys.argv[1:]
n, size = int(num_blocks), int(block_bytes)
export = KvExport("tcp", address, n, size, "decode-0", int(incarnation), "", token)
pool = memoryview(patterned_pool(n, size, int(seed)))
sender = TcpTransport().connect(export, sender_id="prefill-0#1", block_bytes=size)
print("connected", flush=True)
for line in sys.stdin:
    generation = int(line)
    moves = BlockMoves("r/0", tuple(range(n)), tuple(range(n))[::-1], (generation,) * n)
    try:
        sender.push(pool, moves, timeout_s=float(timeout_s))
        print("done", flush=True)
    except TransferError as error:
        print(error.code, flush=True)
"""


@dataclass(frozen=True)
class Namespace:
    """A second network stack, reached from ours by a cable."""

    name: str
    cable: str
    our_address: str
    has_netem: bool


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=PATIENCE_S)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if shutil.which("ip") is None:
        pytest.skip("this machine has no ip command")
    pid = os.getpid()
    name, cable, inner = f"kv{pid}", f"kva{pid}", f"kvb{pid}"
    ours, theirs = (f"10.203.{pid >> 6 & 255}.{(pid & 63) * 4 + last}" for last in (1, 2))
    try:
        run(f"ip netns add {name}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no right to make a network namespace: {error.stderr.decode().strip()}")
    try:
        try:
            run(f"ip netns exec {name} true")
            run(f"ip link add {cable} type veth peer name {inner} netns {name}")
            run(f"ip addr add {ours}/30 dev {cable}")
            run(f"ip link set {cable} up")
            run(f"ip -n {name} addr add {theirs}/30 dev {inner}")
            run(f"ip -n {name} link set {inner} up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no cable into a network namespace: {error.stderr.decode().strip()}")
        try:
            run(f"tc qdisc add dev {cable} root netem delay 2ms loss 1%")
            run(f"ip netns exec {name} tc qdisc add dev {inner} root netem delay 2ms loss 1%")
            has_netem = True
        except (subprocess.CalledProcessError, FileNotFoundError):
            has_netem = False
        print(f"netem: {has_netem}")
        yield Namespace(name, cable, ours, has_netem)
    finally:
        run(f"ip netns del {name}")


def wait_for(condition: Callable[[], bool]) -> None:
    clock = MonotonicClock()
    deadline_at_s = clock.now() + PATIENCE_S
    while not condition():
        assert clock.now() < deadline_at_s, "the condition did not come true in time"


def start_sender(
    namespace: Namespace, receiver: KvReceiver, timeout_s: float
) -> subprocess.Popen[str]:
    export = receiver.export()
    numbers = (export.incarnation, NUM_BLOCKS, BLOCK_BYTES, SEED, timeout_s)
    arguments = [export.address, export.token, *map(str, numbers)]
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace.name, sys.executable, "-c", SENDER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_blocks_cross_namespaces_and_a_pulled_cable_ends_in_time(namespace: Namespace) -> None:
    transport = TcpTransport(DoorSettings(namespace.our_address, batch_timeout_s=2.0))
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    with start_sender(namespace, receiver, timeout_s=4.0) as process:
        try:
            assert heard(process) == "connected"
            receiver.expect(ALL, [1] * NUM_BLOCKS)
            say(process, "1")
            if not namespace.has_netem:  # with it, 4 s may be too short on a busy machine
                assert heard(process) == "done"
                assert receiver.poll(ALL, [1] * NUM_BLOCKS).is_complete
                last = receiver.buffer()[-BLOCK_BYTES:]
                assert last == source[:BLOCK_BYTES]
            else:
                heard(process)
            run(f"ip link set {namespace.cable} down")
            receiver.expect(ALL, [2] * NUM_BLOCKS)
            say(process, "2")
            # Nobody answers and nobody refuses: only the time of the push ends it.
            assert heard(process) == "kv_transfer_timeout"
            receiver.revoke(ALL)
            wait_for(lambda: receiver.quarantine_clear(ALL))
        finally:
            process.kill()
            receiver.close()
