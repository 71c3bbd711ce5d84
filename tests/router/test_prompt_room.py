"""Large prompts share a room; short ones need none, and what is given back is free."""

import pytest

from router.prompt_room import MEMORY_PER_BYTE, SHORT_BYTES, PromptRoom
from scheduling.errors import CanNeverFit, QueueFull

MIB = 1024 * 1024
# Two of them fit into 28 MiB.
LARGE = MIB


def test_what_finds_no_room_is_told_to_come_again_and_has_room_then() -> None:
    room = PromptRoom(2 * MEMORY_PER_BYTE)
    first, _ = room.hold(LARGE), room.hold(LARGE)
    with pytest.raises(
        QueueFull, match=r"fill the 28 MiB .*; retry later, or raise max_prompt_mib"
    ):
        room.hold(LARGE)
    first.release()
    with room.hold(LARGE):
        assert room.num_bytes == 28 * MIB
    assert room.num_bytes == 14 * MIB


def test_room_that_is_given_back_twice_counts_once() -> None:
    room = PromptRoom(2 * MEMORY_PER_BYTE)
    first, second = room.hold(LARGE), room.hold(LARGE)
    first.release()
    first.release()
    assert room.num_bytes == MEMORY_PER_BYTE * LARGE
    second.release()
    assert room.num_bytes == 0


def test_short_prompts_come_in_where_large_ones_are_refused() -> None:
    room = PromptRoom(MEMORY_PER_BYTE)
    room.hold(LARGE)
    for _ in range(1000):
        room.hold(SHORT_BYTES)
    with pytest.raises(QueueFull) as refused:
        room.hold(SHORT_BYTES + 1)
    assert refused.value.retry_after_s == 1.0


def test_what_is_larger_than_all_the_room_is_not_told_to_come_again() -> None:
    room = PromptRoom(MEMORY_PER_BYTE)
    with pytest.raises(CanNeverFit, match=r"may take 15 MiB .*, where all large prompts get 14"):
        room.hold(LARGE + 1)
    assert room.num_bytes == 0
