"""The frames of a KV connection: what is packed is read, and nothing else is taken for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.batches import TaggedBlocks
from kvtransfer.tcp_frames import (
    BATCH_HEAD_BYTES,
    ENTRY_HEAD_BYTES,
    MAX_BATCH_BLOCKS,
    MAX_ENTRY_BYTES,
    MAX_HELLO_BYTES,
    MAX_NAME_BYTES,
    MEETING_BYTES,
    MEETING_SECRET_BYTES,
    TOKEN_BYTES,
    Answer,
    FrameError,
    Hello,
    Meeting,
    Verdict,
    Welcome,
    entry_sizes,
    hello_bytes,
    pack_answer,
    pack_batch,
    pack_entry,
    pack_hello,
    pack_meeting,
    pack_memory,
    pack_welcome,
    read_answer,
    read_batch_head,
    read_entry,
    read_hello,
    read_meeting,
    read_memory,
    read_memory_head,
    read_tables,
    read_welcome,
)

NUM_BLOCKS = 64
words = st.integers(0, 2**64 - 1)
hellos = st.builds(
    Hello,
    worker_id=st.text(max_size=100),
    incarnation=words,
    sender_id=st.text(max_size=100),
    num_blocks=words,
    block_bytes=words,
    token=st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES),
)


@st.composite
def tagged_blocks(draw: st.DrawFn) -> TaggedBlocks:
    dst = draw(st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, unique=True))
    tags = draw(st.lists(st.integers(1, 2**64 - 1), min_size=len(dst), max_size=len(dst)))
    sampled = draw(st.lists(st.integers(0, len(dst) - 1), unique=True))
    checksums = draw(st.lists(words, min_size=len(sampled), max_size=len(sampled)))
    return TaggedBlocks(
        np.array(dst, np.int64),
        np.array(tags, np.uint64),
        np.array(sampled, np.int64),
        np.array(checksums, np.uint64),
    )


def read_batch(frame: bytes) -> tuple[str, TaggedBlocks]:
    head = read_batch_head(frame[:BATCH_HEAD_BYTES], NUM_BLOCKS)
    return read_tables(head, frame[BATCH_HEAD_BYTES:], NUM_BLOCKS)


@given(hello=hellos)
def test_a_hello_is_read_as_it_was_packed_however_it_comes_in(hello: Hello) -> None:
    frame = pack_hello(hello)
    assert len(frame) <= MAX_HELLO_BYTES
    # A reader that asks how much is missing never asks for a byte of what follows.
    begin = b""
    while len(begin) < hello_bytes(begin):
        begin += frame[len(begin) : hello_bytes(begin)]
    assert begin == frame
    assert read_hello(begin) == hello


@given(blocks=tagged_blocks(), transfer_id=st.text(max_size=50))
def test_a_batch_is_read_as_it_was_packed(blocks: TaggedBlocks, transfer_id: str) -> None:
    name, read = read_batch(pack_batch(7, transfer_id, blocks))
    assert name == transfer_id
    assert read.dst.tolist() == blocks.dst.tolist()
    assert read.tags.tolist() == blocks.tags.tolist()
    assert read.sampled.tolist() == blocks.sampled.tolist()
    assert read.checksums.tolist() == blocks.checksums.tolist()


@given(number=st.integers(0, 2**32 - 1), block_id=st.integers(0, 2**32 - 1), expected=words)
def test_answers_and_welcomes_are_read_as_they_were_packed(
    number: int, block_id: int, expected: int
) -> None:
    for verdict in Verdict:
        answer = Answer(number, verdict, block_id, expected)
        assert read_answer(pack_answer(answer)) == answer
    for welcome in Welcome:
        assert read_welcome(pack_welcome(welcome, expected)) == (welcome, expected)


@given(base=words, metadata=st.binary(max_size=200))
def test_a_description_of_memory_is_read_as_it_was_packed(base: int, metadata: bytes) -> None:
    frame = pack_memory(base, metadata)
    head, rest = frame[: -len(metadata) - 8], frame[-len(metadata) - 8 :]
    assert read_memory_head(head) == (base, len(rest))
    assert read_memory(rest) == metadata


@given(data=st.data(), blocks=tagged_blocks(), hello=hellos)
def test_any_flipped_bit_and_any_cut_is_noticed(
    data: st.DataObject, blocks: TaggedBlocks, hello: Hello
) -> None:
    for frame, read in (
        (pack_hello(hello), read_hello),
        (pack_batch(1, "t", blocks), read_batch),
        (pack_answer(Answer(3, Verdict.STALE, 4, 5)), read_answer),
        (pack_welcome(Welcome.COME_IN, 9), read_welcome),
    ):
        damaged = bytearray(frame)
        at = data.draw(st.integers(0, 8 * len(frame) - 1))
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(FrameError):
            read(bytes(damaged))
        with pytest.raises(FrameError):
            read(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(rubbish=st.binary(max_size=300))
def test_rubbish_is_no_hello_and_is_known_as_soon_as_it_can_be(rubbish: bytes) -> None:
    try:
        length = hello_bytes(rubbish)
    except FrameError:
        return
    # Still open: too little came to tell, or it happens to begin as a hello does.
    assert length <= MAX_HELLO_BYTES
    assert b"TANDEMKV".startswith(rubbish[:8])


@given(
    meeting=st.builds(
        Meeting,
        st.integers(1, 2**64 - 1),
        st.binary(min_size=MEETING_SECRET_BYTES, max_size=MEETING_SECRET_BYTES),
    )
)
def test_how_to_meet_is_read_as_it_was_packed(meeting: Meeting) -> None:
    frame = pack_meeting(meeting)
    assert len(frame) == MEETING_BYTES
    assert read_meeting(frame) == meeting
    with pytest.raises(FrameError):
        read_meeting(frame[:-1] + bytes([frame[-1] ^ 1]))


def test_a_meeting_for_nothing_is_refused() -> None:
    with pytest.raises(FrameError, match="how to meet"):
        read_meeting(pack_meeting(Meeting(0, bytes(MEETING_SECRET_BYTES))))


@given(key=st.text(max_size=100), value=st.binary(max_size=300))
def test_what_is_said_at_a_meeting_is_read_as_it_was_packed(key: str, value: bytes) -> None:
    frame = pack_entry(key, value)
    head, body = frame[:ENTRY_HEAD_BYTES], frame[ENTRY_HEAD_BYTES:]
    num_key_bytes, num_bytes = entry_sizes(head)
    assert len(body) == num_bytes
    assert read_entry(num_key_bytes, body) == (key, value)
    with pytest.raises(FrameError):
        read_entry(num_key_bytes, body[:-1] + bytes([body[-1] ^ 1]))


def test_longer_things_are_not_said_at_a_meeting() -> None:
    with pytest.raises(ValueError, match="bytes each"):
        pack_entry("key", bytes(MAX_ENTRY_BYTES + 1))
    with pytest.raises(FrameError):
        entry_sizes(pack_meeting(Meeting(1, bytes(MEETING_SECRET_BYTES)))[:ENTRY_HEAD_BYTES])


@pytest.mark.parametrize("foreign", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"*1\r\n"])
def test_other_protocols_are_refused_at_their_first_bytes(foreign: bytes) -> None:
    with pytest.raises(FrameError, match="no hello"):
        hello_bytes(foreign)


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        (([NUM_BLOCKS], [1], [], []), "outside"),
        (([3, 3], [1, 1], [], []), "twice"),
        (([3], [0], [], []), "generation 0"),
        (([3], [1], [1], [5]), "checksum"),
        (([], [], [], []), "0 blocks"),
        ((list(range(NUM_BLOCKS + 1)), [1] * (NUM_BLOCKS + 1), [], []), "65 blocks"),
        (([3], [1], [0, 0], [5, 5]), "2 checksums"),
    ],
)
def test_a_batch_that_no_sender_sends_is_refused(
    blocks: tuple[list[int], list[int], list[int], list[int]], problem: str
) -> None:
    dst, tags, sampled, checksums = blocks
    frame = pack_batch(
        1,
        "t",
        TaggedBlocks(
            np.array(dst, np.int64),
            np.array(tags, np.uint64),
            np.array(sampled, np.int64),
            np.array(checksums, np.uint64),
        ),
    )
    with pytest.raises(FrameError, match=problem):
        read_batch(frame)


def test_names_and_tokens_of_another_size_are_not_packed() -> None:
    for worker_id, token in (("w" * (MAX_NAME_BYTES + 1), b"t" * TOKEN_BYTES), ("w", b"t")):
        with pytest.raises(ValueError, match="bytes"):
            pack_hello(Hello(worker_id, 1, "s", 1, 1, token))


def test_tables_are_bounded_before_they_are_read() -> None:
    many = np.arange(MAX_BATCH_BLOCKS + 1, dtype=np.int64)
    empty = np.array([], np.int64)
    blocks = TaggedBlocks(many, many.astype(np.uint64) + 1, empty, empty.astype(np.uint64))
    head = pack_batch(1, "t", blocks)[:BATCH_HEAD_BYTES]
    with pytest.raises(FrameError, match="refused"):
        read_batch_head(head, 1 << 30)
