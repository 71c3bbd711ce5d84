"""How a process group comes about: who is let in, and that no wait is without an end."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from kvtransfer.group_meeting import new_meeting, receive_group, send_group
from kvtransfer.group_store import MAX_ENTRIES, MeetingStore
from kvtransfer.group_testing import GlooAsNccl, NcclThatNeverConnects
from kvtransfer.process_group import SENDER, Gloo, GroupFailed, GroupKind, Nccl, PairGroup
from kvtransfer.tcp_frames import FrameError, Meeting, pack_entry
from kvtransfer.tcp_stream import ConnectionLost, Stream
from kvtransfer.testing import PATIENCE_S
from runtime.clock import MonotonicClock

# A stranger waits so long for what does not come.
SHORT_S, STRANGER_S = 0.3, 2.0
KINDS = [Gloo(), Nccl("cpu", GlooAsNccl())]


@pytest.fixture
def streams() -> Iterator[tuple[Stream, Stream]]:
    """The receiver's and the sender's end of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), PATIENCE_S)
        far, _ = listener.accept()
    pair = Stream(near), Stream(far)
    yield pair
    for stream in pair:
        stream.close()


def wait_on() -> None:
    """The test's own timeout ends it."""


def out_of_time() -> None:
    raise GroupFailed("out of time")


def both(near: Callable[[], PairGroup], far: Callable[[], PairGroup]) -> list[object]:
    """What becomes of both sides: a group, or why there is none."""
    outcomes: list[object] = [None, None]

    def run(at: int, join: Callable[[], PairGroup]) -> None:
        try:
            outcomes[at] = join()
        except (ConnectionLost, FrameError) as error:
            outcomes[at] = error

    threads = [threading.Thread(target=run, args=(at, join)) for at, join in enumerate([near, far])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    return outcomes


def takes_at_most(timeout_s: float) -> contextlib.AbstractContextManager[None]:
    @contextlib.contextmanager
    def measure() -> Iterator[None]:
        clock = MonotonicClock()
        begin_s = clock.now()
        yield
        assert clock.now() - begin_s <= timeout_s

    return measure()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_two_who_share_a_secret_meet_and_others_do_not(
    kind: GroupKind, streams: tuple[Stream, Stream]
) -> None:
    meeting = new_meeting(1 << 20)
    receiver, sender = streams
    groups = both(
        lambda: receive_group(kind, meeting, receiver), lambda: send_group(kind, meeting, sender)
    )
    for group in groups:
        assert isinstance(group, PairGroup)
        group.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_who_gets_into_the_group_without_the_secret_is_put_out_before_the_first_batch(
    kind: GroupKind, streams: tuple[Stream, Stream]
) -> None:
    # As one who found the port that the library listens on, and is faster than the sender.
    meeting, stranger = new_meeting(1 << 20), Meeting(1 << 20, bytes(32))
    receiver, sender = streams

    def join_as_stranger() -> PairGroup:
        return send_group(kind, stranger, sender, STRANGER_S)

    at_receiver, at_stranger = both(
        lambda: receive_group(kind, meeting, receiver), join_as_stranger
    )
    assert isinstance(at_receiver, GroupFailed)
    assert at_receiver.problem == "somebody else has joined the group"
    assert isinstance(at_stranger, ConnectionLost)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_peer_that_says_nothing_is_given_up_in_time(
    kind: GroupKind, streams: tuple[Stream, Stream]
) -> None:
    for join, stream in zip((receive_group, send_group), streams, strict=True):
        with takes_at_most(SHORT_S + 2.0), pytest.raises(GroupFailed):
            join(kind, new_meeting(1 << 20), stream, SHORT_S)


def test_a_peer_that_says_where_it_is_and_no_more_is_given_up_in_time(
    streams: tuple[Stream, Stream],
) -> None:
    receiver, sender = streams

    def say_where_and_stop() -> PairGroup:
        def has_heard() -> None:
            raise ConnectionLost("it stands still")

        return Gloo().join(MeetingStore(receiver, has_heard), 0, receiver.own_host, SHORT_S)

    def join() -> PairGroup:
        with takes_at_most(SHORT_S + 3.0):
            return send_group(Gloo(), new_meeting(1 << 20), sender, SHORT_S)

    outcomes = both(say_where_and_stop, join)
    assert isinstance(outcomes[1], ConnectionLost)


def test_a_peer_that_leaves_in_the_middle_is_noticed_at_once(
    streams: tuple[Stream, Stream],
) -> None:
    receiver, sender = streams
    receiver.reset()
    with takes_at_most(5.0), pytest.raises(ConnectionLost):
        send_group(Gloo(), new_meeting(1 << 20), sender)


def test_a_library_that_never_connects_is_left_behind_in_time(
    streams: tuple[Stream, Stream],
) -> None:
    library = NcclThatNeverConnects()
    with takes_at_most(SHORT_S + 3.0), pytest.raises(GroupFailed, match="not connected"):
        Nccl("cpu", library).join(MeetingStore(streams[1], wait_on), SENDER, "", SHORT_S)
    # Where it can be called back, it is.
    assert library.was_aborted.wait(PATIENCE_S)


def test_what_one_side_puts_into_the_store_the_other_gets(streams: tuple[Stream, Stream]) -> None:
    near, far = (MeetingStore(stream, wait_on) for stream in streams)
    near.set("a", "1")
    near.set("b", b"\x00\xff")
    assert (far.get("b"), far.get("a")) == (b"\x00\xff", b"1")
    assert far.check(["a", "b"])
    assert not far.check(["c"])
    far.set("c", b"")
    near.wait(["c"])
    threads = [threading.Thread(target=store.finish) for store in (near, far)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    # Afterwards the connection is for batches: nothing is sent or waited for.
    near.set("d", b"")
    assert not streams[1].has_news()
    with pytest.raises(GroupFailed):
        far.get("d")


def test_the_store_bounds_how_long_and_how_much_a_peer_talks(
    streams: tuple[Stream, Stream],
) -> None:
    talker, listener = streams
    with pytest.raises(GroupFailed, match="out of time"):
        MeetingStore(listener, out_of_time).get("a")
    for number in range(MAX_ENTRIES + 1):
        talker.send([memoryview(pack_entry(f"k{number}", b""))], wait_on)
    with pytest.raises(GroupFailed, match="other things"):
        MeetingStore(listener, wait_on).get("a")


def test_what_is_no_entry_is_refused(streams: tuple[Stream, Stream]) -> None:
    streams[0].send([memoryview(bytes(64))], wait_on)
    with pytest.raises(FrameError):
        MeetingStore(streams[1], wait_on).get("a")
