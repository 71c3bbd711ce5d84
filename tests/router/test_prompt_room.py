"""Large prompts share a room; short ones need none, and what is given back is free."""

import pytest

from router.prompt_room import (
    MEMORY_PER_BYTE,
    SHORT_BYTES,
    WORK_PER_ASCII_CHAR,
    WORK_PER_CHAR,
    PromptRoom,
)
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


def test_of_texts_that_wait_for_the_tokenizer_the_largest_count_that_it_takes_at_once() -> None:
    room = PromptRoom(2 * WORK_PER_ASCII_CHAR + MEMORY_PER_BYTE, num_threads=2)
    works = [room.work_on(chars, chars, is_ascii=True) for chars in (LARGE, LARGE // 2, LARGE)]
    assert room.num_work_bytes == 2 * WORK_PER_ASCII_CHAR * LARGE
    with room.hold(LARGE), pytest.raises(QueueFull, match=r"fill the 854 MiB .*; retry later"):
        room.hold(LARGE)
    works[0].done()
    works[0].done()
    assert room.num_work_bytes == WORK_PER_ASCII_CHAR * (LARGE + LARGE // 2)
    for work in works:
        work.done()
    assert room.num_work_bytes == 0


def test_a_text_that_finds_no_room_beside_others_is_told_to_come_again() -> None:
    room = PromptRoom(WORK_PER_CHAR + 2 * MEMORY_PER_BYTE)
    first, second, third = room.hold(LARGE), room.hold(LARGE), room.hold(LARGE)
    with pytest.raises(QueueFull, match="large prompts fill"):
        room.work_on(LARGE, LARGE, is_ascii=False)
    assert room.num_work_bytes == 0
    first.release()
    work = room.work_on(LARGE, LARGE, is_ascii=False)
    assert room.num_bytes + room.num_work_bytes == (WORK_PER_CHAR + 2 * MEMORY_PER_BYTE) * MIB
    for hold in (second, third):
        hold.release()
    work.done()


def test_a_text_that_only_tokenising_makes_too_large_is_told_so() -> None:
    room = PromptRoom(WORK_PER_ASCII_CHAR + MEMORY_PER_BYTE)
    room.work_on(LARGE, LARGE, is_ascii=True)
    problem = r"of 1048577 characters may take 435 MiB .* as token ids, or raise max_prompt_mib"
    with pytest.raises(CanNeverFit, match=problem):
        room.work_on(LARGE + 1, LARGE + 1, is_ascii=True)
    # Piece by piece it takes no more than a short one.
    assert room.work_on(LARGE + 1, SHORT_BYTES, is_ascii=True).num_bytes == 0


def test_all_that_is_given_back_is_told_once() -> None:
    freed: list[int] = []
    room = PromptRoom(1024, on_freed=freed.append)
    hold, work = room.hold(LARGE), room.work_on(LARGE, LARGE, is_ascii=True)
    assert freed == []
    for _ in range(2):
        work.done()
        hold.release()
    room.hold(SHORT_BYTES).release()
    assert freed == [WORK_PER_ASCII_CHAR * LARGE, MEMORY_PER_BYTE * LARGE]
