"""The bookkeeping of sends without a copy: what comes back, in which order, and when to stop."""

import struct
from itertools import accumulate, chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.zerocopy import (
    MAX_BUFFERS,
    MAX_PENDING_SENDS,
    MAX_SEND_BYTES,
    MIN_SEND_BYTES,
    PinnedSends,
    Released,
    ZeroCopy,
    cut_sends,
    read_released,
)

IPV4, IPV6 = (0, 11), (41, 25)
WRAP = 1 << 32


def extended_error(
    errno: int = 0, origin: int = 5, code: int = 0, info: int = 3, data: int = 7
) -> bytes:
    """struct sock_extended_err, and an address that the kernel puts behind it."""
    return struct.pack("=IBBBBII", errno, origin, 0, code, 0, info, data) + bytes(16)


def sent(num_sends: int, use: ZeroCopy = ZeroCopy.INSIST) -> PinnedSends:
    sends = PinnedSends(use)
    for _ in range(num_sends):
        sends.note_sent()
    return sends


@pytest.mark.parametrize("carrier", [IPV4, IPV6])
def test_a_range_is_read_from_either_version_of_ip(carrier: tuple[int, int]) -> None:
    assert read_released(*carrier, extended_error()) == Released(3, 7, is_copied=False)
    assert read_released(*carrier, extended_error(code=1)) == Released(3, 7, is_copied=True)


def test_what_is_about_anything_else_is_passed_over() -> None:
    for level, kind, data in [
        (1, 11, extended_error()),
        (0, 25, extended_error()),
        (*IPV4, extended_error(origin=2)),
        (*IPV4, extended_error(errno=113)),
        (*IPV4, extended_error()[:15]),
        (*IPV4, b""),
    ]:
        assert read_released(level, kind, data) is None


@given(st.binary(max_size=64))
def test_any_bytes_are_a_range_or_none(data: bytes) -> None:
    released = read_released(*IPV4, data)
    assert released is None or 0 <= released.first < WRAP


def test_one_send_tries_and_the_others_wait_for_what_the_kernel_says_of_it() -> None:
    sends = PinnedSends(ZeroCopy.AUTO)
    assert sends.may_send(MIN_SEND_BYTES)
    assert not sends.may_send(MIN_SEND_BYTES - 1)
    sends.note_sent()
    assert not sends.may_send(MIN_SEND_BYTES)
    assert not sends.has_worked
    sends.note_released(Released(0, 0, is_copied=False))
    assert sends.has_worked
    for _ in range(5):
        assert sends.may_send(MIN_SEND_BYTES)
        sends.note_sent()


@pytest.mark.parametrize("num_good", [0, 3])
def test_a_connection_on_which_the_kernel_copies_makes_no_more_of_them(num_good: int) -> None:
    sends = sent(num_good + 1, ZeroCopy.AUTO)
    for number in range(num_good):
        sends.note_released(Released(number, number, is_copied=False))
    sends.note_released(Released(num_good, num_good, is_copied=True))
    assert sends.problem == "it copies all the same"
    assert not sends.may_send(MAX_SEND_BYTES)
    assert not sends.has_worked


def test_the_first_reason_to_stop_stays() -> None:
    sends = sent(1, ZeroCopy.AUTO)
    sends.stop("refused: no buffer space")
    sends.note_released(Released(0, 0, is_copied=True))
    assert (sends.problem, sends.num_pending) == ("refused: no buffer space", 0)


def test_what_is_not_wanted_is_never_done() -> None:
    assert not PinnedSends(ZeroCopy.NEVER).may_send(MAX_SEND_BYTES)


def test_who_insists_goes_on_though_the_kernel_copies_but_not_without_a_bound() -> None:
    sends = sent(1)
    sends.note_released(Released(0, 0, is_copied=True))
    for _ in range(MAX_PENDING_SENDS):
        assert sends.may_send(1)
        sends.note_sent()
    assert not sends.may_send(1)


@pytest.mark.parametrize(
    "nonsense", [Released(3, 3, False), Released(1, 3, False), Released(0, 0, False)]
)
def test_a_range_that_was_not_sent_or_came_already_frees_nothing(nonsense: Released) -> None:
    sends = sent(3)
    sends.note_released(Released(0, 0, is_copied=False))
    sends.note_released(nonsense)
    assert sends.num_pending == 2
    assert sends.problem is not None
    sends.note_released(Released(1, 2, is_copied=False))
    assert sends.num_pending == 0
    sends.check_invariants()


def test_a_range_when_nothing_was_sent_frees_nothing() -> None:
    sends = PinnedSends(ZeroCopy.AUTO)
    sends.note_released(Released(0, 0, is_copied=False))
    assert (sends.num_pending, sends.problem is None) == (0, False)


@given(data=st.data(), num_before=st.integers(0, 3))
def test_ranges_in_any_order_free_each_send_once(data: st.DataObject, num_before: int) -> None:
    sends = sent(num_before)
    for number in range(num_before):
        sends.note_released(Released(number, number, is_copied=False))
    # Numbers on their way back, as ranges in any order, while more are sent.
    pending: set[int] = set()
    num_sent = num_before
    for _ in range(data.draw(st.integers(1, 12))):
        num_more = data.draw(st.integers(0, 4))
        for number in range(num_sent, num_sent + num_more):
            sends.note_sent()
            pending.add(number)
        num_sent += num_more
        if pending:
            first = last = data.draw(st.sampled_from(sorted(pending)))
            while last + 1 in pending and data.draw(st.booleans()):
                last += 1
            sends.note_released(Released(first, last, data.draw(st.booleans())))
            pending -= set(range(first, last + 1))
        sends.check_invariants()
        assert sends.num_pending == len(pending)
    assert sends.problem is None


def test_numbers_begin_again_after_the_largest() -> None:
    sends = PinnedSends(ZeroCopy.INSIST, num_sent=WRAP - 2)
    for _ in range(4):
        sends.note_sent()
    sends.note_released(Released(1, 1, is_copied=False))
    sends.note_released(Released(WRAP - 2, 0, is_copied=False))
    sends.check_invariants()
    assert (sends.num_pending, sends.problem) == (0, None)


@given(
    sizes=st.lists(st.integers(1, 40), max_size=20),
    num_small=st.sampled_from([0, 1, MAX_BUFFERS - 1, MAX_BUFFERS, 2 * MAX_BUFFERS + 5]),
    max_bytes=st.integers(1, 3000),
)
def test_cut_sends_are_the_same_bytes_within_bounds(
    sizes: list[int], num_small: int, max_bytes: int
) -> None:
    sizes = [1] * num_small + sizes
    whole = memoryview(bytes(at % 251 for at in range(sum(sizes))))
    starts = [0, *accumulate(sizes)]
    buffers = [whole[start:end] for start, end in pairwise(starts)]
    pieces = list(cut_sends(buffers, max_bytes))
    assert b"".join(chain.from_iterable(pieces)) == whole
    assert all(0 < sum(map(len, piece)) <= max_bytes for piece in pieces)
    assert all(len(piece) <= MAX_BUFFERS for piece in pieces)
