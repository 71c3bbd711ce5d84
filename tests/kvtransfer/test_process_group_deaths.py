"""Process groups between real processes: what a death or a stop in the middle leaves behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kvtransfer.batches import PushSettings
from kvtransfer.errors import (
    PeerGone,
    TransferTimeout,
)
from kvtransfer.group_meeting import send_group
from kvtransfer.group_transport import GroupTransport
from kvtransfer.process_group import Gloo, GroupFailed
from kvtransfer.protocol import KvReceiver, KvSender
from kvtransfer.sender_process_testing import PushRefused, SenderProcess, SenderSpec
from kvtransfer.tcp_connect import dial
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.tcp_frames import MEETING_BYTES, read_meeting
from kvtransfer.testing import (
    PATIENCE_S,
    next_incarnation,
)
from kvtransfer.whole_pool_testing import (
    ALL,
    BATCH,
    BLOCK_BYTES,
    NUM_BLOCKS,
    SEED,
    grant,
    has_come,
    num_right_blocks,
    push,
    reversed_moves,
    wait_for,
)
from runtime.clock import MonotonicClock
from scheduling.kv_export import KvExport

MAX_ROUNDS = 10
OWN = b"\xa5" * (NUM_BLOCKS * BLOCK_BYTES)


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., KvReceiver]]:
    made: list[KvReceiver] = []

    def make(settings: PushSettings = BATCH, **door: object) -> KvReceiver:
        transport = GroupTransport(Gloo(), DoorSettings(**door), settings)  # type: ignore[arg-type]
        life = next_incarnation()
        made.append(transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", life))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., KvReceiver]) -> KvReceiver:
    return make_receiver()


def connect(export: KvExport, settings: PushSettings = BATCH) -> KvSender:
    transport = GroupTransport(Gloo(), settings=settings)
    return transport.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)


def sender_process(receiver: KvReceiver, batch_blocks: int = 8) -> SenderProcess:
    spec = SenderSpec(receiver.export(), "prefill-0#1", NUM_BLOCKS, SEED)
    return SenderProcess(replace(spec, max_batch_bytes=batch_blocks * BLOCK_BYTES))


@pytest.mark.slow
def test_a_sender_that_is_killed_at_any_moment_shows_no_wrong_block(receiver: KvReceiver) -> None:
    for generation, num_arrived_at_kill in enumerate([1, 30], start=1):
        moves = reversed_moves(generation)
        grant(receiver, moves)
        receiver.buffer()[:] = bytes(NUM_BLOCKS * BLOCK_BYTES)
        with sender_process(receiver, batch_blocks=1) as sender:
            sender.connect()
            sender.begin_push(moves)
            wait_for(has_come(receiver, moves, num_arrived_at_kill))
            sender.kill()
        assert num_right_blocks(receiver, moves) >= num_arrived_at_kill
        receiver.revoke(ALL)
        wait_for(lambda: receiver.quarantine_clear(ALL))


@pytest.mark.slow
def test_a_block_that_left_quarantine_is_never_written_again(receiver: KvReceiver) -> None:
    refusals: set[str] = set()
    with sender_process(receiver, batch_blocks=3) as sender:
        sender.connect()
        for generation in range(1, 21):
            moves = reversed_moves(generation)
            grant(receiver, moves)
            sender.begin_push(moves)
            # Revoke before, amid and after the push.
            wait_for(has_come(receiver, moves, generation % 6 * 12))
            receiver.revoke(ALL)
            wait_for(lambda: receiver.quarantine_clear(ALL))
            receiver.buffer()[:] = OWN
            try:
                sender.finish_push()
            except PushRefused as refusal:
                refusals.add(refusal.code)
            assert receiver.buffer() == OWN
    assert refusals == {"kv_stale_generation"}


@pytest.mark.slow
def test_a_stopped_sender_keeps_no_block_and_writes_none_when_it_goes_on(
    make_receiver: Callable[..., KvReceiver],
) -> None:
    receiver = make_receiver(batch_timeout_s=1.0, max_senders=1)
    with sender_process(receiver, batch_blocks=1) as sender:
        sender.connect()
        # Once, but for a machine that holds this process up until all is pushed.
        for generation in range(1, MAX_ROUNDS):
            moves = reversed_moves(generation)
            grant(receiver, moves)
            sender.begin_push(moves)
            wait_for(has_come(receiver, moves, 5))
            sender.signal(signal.SIGSTOP)
            if not has_come(receiver, moves, NUM_BLOCKS // 2)():
                break
            sender.signal(signal.SIGCONT)
            with contextlib.suppress(PushRefused):
                sender.finish_push()
            receiver.revoke(ALL)
            wait_for(lambda: receiver.quarantine_clear(ALL))
        receiver.revoke(ALL)
        wait_for(lambda: receiver.quarantine_clear(ALL))
        receiver.buffer()[:] = OWN
        sender.signal(signal.SIGCONT)
        with pytest.raises(PushRefused) as refused:
            sender.finish_push()
        assert refused.value.code in ("kv_stale_generation", "kv_link_broken")
        assert receiver.buffer() == OWN


RECEIVE = f"""
import sys
from kvtransfer.batches import PushSettings, TargetPool, cut_batches, source_blocks
from kvtransfer.group_transport import GroupTransport
from kvtransfer.process_group import Gloo
transport = GroupTransport(Gloo(), settings=PushSettings(max_batch_bytes={8 * BLOCK_BYTES}))
receiver = transport.create_receiver({NUM_BLOCKS}, {BLOCK_BYTES}, "decode-9", 1)
receiver.expect(range({NUM_BLOCKS}), [1] * {NUM_BLOCKS})
export = receiver.export()
print(export.address, export.token, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def receiver_process() -> Iterator[tuple[subprocess.Popen[str], KvExport]]:
    template = GroupTransport(Gloo()).create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-9", 1)
    template.close()
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if "kv_door" not in line)
            address, token = next(lines).split()
            yield process, replace(template.export(), address=address, token=token)
        finally:
            process.kill()
            process.wait(PATIENCE_S)


@pytest.mark.slow
def test_a_killed_receiver_is_a_gone_peer() -> None:
    with receiver_process() as (process, export):
        sender = connect(export)
        push(sender, reversed_moves())
        process.kill()
        process.wait(PATIENCE_S)
        with pytest.raises(PeerGone):
            push(sender, reversed_moves())
        sender.close()


@pytest.mark.slow
def test_a_stopped_receiver_ends_a_push_in_its_time() -> None:
    clock = MonotonicClock()
    with receiver_process() as (process, export):
        sender = connect(export)
        os.kill(process.pid, signal.SIGSTOP)
        started_at_s = clock.now()
        with pytest.raises(TransferTimeout):
            push(sender, reversed_moves(), timeout_s=0.5)
        assert clock.now() - started_at_s < PATIENCE_S / 2
        # Killed in the middle of a push: the other thread hears of it without a deadline.
        os.kill(process.pid, signal.SIGCONT)
        push(sender, reversed_moves())
        os.kill(process.pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, process.kill)
        killer.start()
        with pytest.raises(PeerGone):
            push(sender, reversed_moves())
        killer.join(PATIENCE_S)
        sender.close()


@pytest.mark.slow
def test_a_receiver_that_is_stopped_after_its_greeting_is_given_up_in_time() -> None:
    clock = MonotonicClock()
    with receiver_process() as (process, export):
        stream = dial(export, "prefill-0#1", PATIENCE_S)
        meeting = read_meeting(stream.receive(MEETING_BYTES, lambda: None))
        os.kill(process.pid, signal.SIGSTOP)
        started_at_s = clock.now()
        with pytest.raises(GroupFailed):
            send_group(Gloo(), meeting, stream, timeout_s=1.0)
        assert clock.now() - started_at_s < PATIENCE_S / 2
        stream.reset()
        # Nobody else suffers once it goes on.
        os.kill(process.pid, signal.SIGCONT)
        sender = connect(export)
        push(sender, reversed_moves())
        sender.close()
