"""TCP between two network namespaces: another address, another stack, a cable that can be pulled.

Packets take a while and some are lost on the way: by the kernel's netem, or where it has none by a
cable of our own.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from deploy.local.settings import ROOT
from kvtransfer.lossy_cable_testing import LossyCable
from kvtransfer.protocol import KvReceiver
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S, patterned_pool
from kvtransfer.whole_pool_testing import wait_for

BLOCK_BYTES, NUM_BLOCKS, SEED = 256 << 10, 16, 9
# Each way.
LOSS_FRACTION, DELAY_S = 0.01, 0.005
ALL = tuple(range(NUM_BLOCKS))
MAX_PUSHES, MIN_LOST = 10, 5
# The other end: pushes the pool a number of times, and says how each push ended.
SENDER = """
import sys
from kvtransfer.errors import TransferError
from kvtransfer.protocol import BlockMoves
from kvtransfer.tcp import TcpTransport
from kvtransfer.testing import patterned_pool
from scheduling.kv_export import KvExport
address, token, incarnation, num_blocks, block_bytes, seed = sys.argv[1:]
n, size = int(num_blocks), int(block_bytes)
export = KvExport("tcp", address, n, size, "decode-0", int(incarnation), "", token)
pool = memoryview(patterned_pool(n, size, int(seed)))
sender = TcpTransport().connect(export, sender_id="prefill-0#1", block_bytes=size)
print("connected", flush=True)
for line in sys.stdin:
    generation, timeout_s = line.split()
    generation = int(generation)
    moves = BlockMoves("r/0", tuple(range(n)), tuple(range(n))[::-1], (generation,) * n)
    try:
        sender.push(pool, moves, timeout_s=float(timeout_s))
        print("done", flush=True)
    except TransferError as error:
        print(error.code, flush=True)
"""
# The other end again: how long it takes to be connected, which is one round trip.
ROUND_TRIP = """
import socket, sys, time
host, port, timeout_s = sys.argv[1:]
taken_s = []
for _ in range(5):
    began_at_s = time.monotonic()
    socket.create_connection((host, int(port)), float(timeout_s)).close()
    taken_s.append(time.monotonic() - began_at_s)
print(min(taken_s))
"""


@dataclass(frozen=True)
class Namespace:
    """A second network stack, reached from ours by a cable."""

    name: str
    cable: str
    our_address: str
    # How many packets did not arrive so far.
    num_lost: Callable[[], int]


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
    with ExitStack() as stack:
        stack.callback(run, f"ip netns del {name}")
        try:
            run(f"ip netns exec {name} true")
            num_lost = lay_cable(name, cable, inner, stack)
            run(f"ip addr add {ours}/30 dev {cable}")
            run(f"ip link set {cable} up")
            run(f"ip -n {name} addr add {theirs}/30 dev {inner}")
            run(f"ip -n {name} link set {inner} up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no cable into a network namespace: {error.stderr.decode().strip()}")
        except OSError as error:
            pytest.skip(f"neither netem nor a TUN device: {error}")
        yield Namespace(name, cable, ours, num_lost)


def lay_cable(name: str, cable: str, inner: str, stack: ExitStack) -> Callable[[], int]:
    """One that delays and loses packets both ways; returns how to ask how many were lost."""
    run(f"ip link add {cable} type veth peer name {inner} netns {name}")
    try:
        netem = f"root netem delay {DELAY_S * 1e3:g}ms loss {LOSS_FRACTION:%}"
        run(f"tc qdisc add dev {cable} {netem}")
        run(f"ip netns exec {name} tc qdisc add dev {inner} {netem}")
    except (subprocess.CalledProcessError, FileNotFoundError):
        print("packets are delayed and lost by a cable of our own")
        run(f"ip link del {cable}")
        lossy = LossyCable((cable, inner), LOSS_FRACTION, SEED, DELAY_S)
        # Ends before the namespace.
        stack.callback(lossy.close)
        run(f"ip link set {inner} netns {name}")
        return lambda: lossy.num_lost
    print("packets are delayed and lost by netem")
    return lambda: (
        num_dropped(f"tc -s qdisc show dev {cable}")
        + num_dropped(f"ip netns exec {name} tc -s qdisc show dev {inner}")
    )


def num_dropped(command: str) -> int:
    told = subprocess.run(command.split(), check=True, capture_output=True, timeout=PATIENCE_S)
    return sum(int(number) for number in re.findall(r"dropped (\d+)", told.stdout.decode()))


def shortest_round_trip_s(namespace: Namespace) -> float:
    """From there to here and back, by the clock of a process over there."""
    with socket.create_server((namespace.our_address, 0)) as ear:
        address = [namespace.our_address, str(ear.getsockname()[1]), str(PATIENCE_S)]
        told = subprocess.run(
            ["ip", "netns", "exec", namespace.name, sys.executable, "-c", ROUND_TRIP, *address],
            check=True,
            capture_output=True,
            timeout=2 * PATIENCE_S,
        )
    return float(told.stdout)


def start_sender(namespace: Namespace, receiver: KvReceiver) -> subprocess.Popen[str]:
    export = receiver.export()
    numbers = (export.incarnation, NUM_BLOCKS, BLOCK_BYTES, SEED)
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


def heard(process: subprocess.Popen[str], log_lines: list[str]) -> str:
    """The next word; what the sender logs before it is added to `log_lines`."""
    assert process.stdout is not None
    for line in process.stdout:
        if len(line.split()) == 1:
            return line.strip()
        log_lines.append(line)
    return ""


def test_blocks_arrive_whole_though_packets_are_late_or_lost_and_a_pulled_cable_ends_in_time(
    namespace: Namespace,
) -> None:
    round_trip_s = shortest_round_trip_s(namespace)
    print(f"round trip {round_trip_s * 1e3:.1f} ms")
    # Beyond it the kernel and a busy machine take what they like.
    assert round_trip_s >= 2 * DELAY_S
    transport = TcpTransport(DoorSettings(namespace.our_address, batch_timeout_s=5.0))
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    blocks = [bytes(source[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at in ALL]
    log_lines: list[str] = []
    with start_sender(namespace, receiver) as process:
        try:
            assert heard(process, log_lines) == "connected"
            generation = 0
            # A push is some thousand packets: while hardly any was lost, another is made. The
            # second one knows what became of a send without a copy in the first.
            while generation < 2 or (generation < MAX_PUSHES and namespace.num_lost() < MIN_LOST):
                generation += 1
                receiver.expect(ALL, [generation] * NUM_BLOCKS)
                say(process, f"{generation} {PATIENCE_S}")
                assert heard(process, log_lines) == "done"
                assert receiver.poll(ALL, [generation] * NUM_BLOCKS).is_complete
                # The sender turns their order round.
                assert bytes(receiver.buffer()) == b"".join(reversed(blocks))
                receiver.buffer()[:] = bytes(NUM_BLOCKS * BLOCK_BYTES)
            assert namespace.num_lost() >= MIN_LOST
            # Whoever takes a packet into another network stack of this machine copies it.
            assert len([line for line in log_lines if "it copies all the same" in line]) == 1
            run(f"ip link set {namespace.cable} down")
            receiver.expect(ALL, [generation + 1] * NUM_BLOCKS)
            say(process, f"{generation + 1} 4")
            # Nobody answers and nobody refuses: only the time of the push ends it.
            assert heard(process, log_lines) == "kv_transfer_timeout"
            receiver.revoke(ALL)
            wait_for(lambda: receiver.quarantine_clear(ALL))
        finally:
            process.kill()
            receiver.close()
