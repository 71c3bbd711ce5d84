"""What travels on a connection that carries KV, as bytes. Pure: no socket is touched.

    sender                      receiver
    hello               →
                        ←       welcome (a verdict)
    batch, block bytes  →
    batch, block bytes  →
                        ←       answer (a verdict on one batch)

Where the bytes go another way (NIXL), a memory description follows the welcome, and a batch is
answered twice:

    batch               →
                        ←       answer: granted
    answer: written     →
                        ←       answer: published

Where they go by a process group (gloo, NCCL), the welcome is followed by what the pair meets under,
and both sides say what the library would put into a store, until each has said that it is over:

                        ←       meeting
    entries             ↔       entries

A batch is announced as above, and its bytes are sent by the group at once.

All numbers are little endian. Every frame begins with a mark of its kind and is covered by a
checksum; lengths are bounded before anything is allocated. Block bytes follow their batch without
a frame of their own, in the order of its block ids.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash

from kvtransfer.batches import TaggedBlocks

# Of everything here, and of what gloo and NCCL are asked to do between a meeting and an answer: to
# be raised with every change that a peer of another version would misread.
VERSION: Final = 2
# Who claims a later one is a stranger, and told nothing.
_MAX_VERSION: Final = 1023
# One batch's tables take at most 1.6 MB.
MAX_BATCH_BLOCKS: Final = 1 << 16
MAX_NAME_BYTES: Final = 1024
TOKEN_BYTES: Final = 16
# What a sender sends is padded to whole cache lines, so that the kernel copies block bytes between
# addresses of one alignment; docs/decisions/kv-over-tcp.md has what is known of the gain.
_ALIGNMENT: Final = 64

_DIGEST = struct.Struct("<Q")
# mark, version, name bytes, sender bytes, num_blocks, block_bytes, incarnation, token
_HELLO = struct.Struct("<8sHHHxxQQQ16s")
# mark, version, verdict, the receiver's incarnation
_WELCOME = struct.Struct("<8sHHxxxxQ")
# mark, sequence number, num_blocks, num_checksums, transfer id bytes
_BATCH = struct.Struct("<4sIIIHxx")
# mark, sequence number, verdict, block, its generation
_ANSWER = struct.Struct("<4sIHxxIQ")
# mark, base address, metadata bytes
_MEMORY = struct.Struct("<4sQI")
# mark, most bytes of a batch, secret of the pair
_MEETING = struct.Struct("<4sxxxxQ32s")
# mark, key bytes, value bytes
_ENTRY = struct.Struct("<4sHHxxxx")
_HELLO_MARK, _WELCOME_MARK = b"TANDEMKV", b"KVDECODE"
_BATCH_MARK, _ANSWER_MARK, _MEMORY_MARK = b"KVB1", b"KVA1", b"KVM1"
_MEETING_MARK, _ENTRY_MARK = b"KVG2", b"KVS1"

HELLO_HEAD_BYTES: Final = _HELLO.size
MAX_HELLO_BYTES: Final = _HELLO.size + 2 * MAX_NAME_BYTES + _DIGEST.size + _ALIGNMENT
WELCOME_BYTES: Final = _WELCOME.size + _DIGEST.size
BATCH_HEAD_BYTES: Final = _BATCH.size + _DIGEST.size
ANSWER_BYTES: Final = _ANSWER.size + _DIGEST.size
MEMORY_HEAD_BYTES: Final = _MEMORY.size + _DIGEST.size
MAX_METADATA_BYTES: Final = 1 << 20
MEETING_BYTES: Final = _MEETING.size + _DIGEST.size
MEETING_SECRET_BYTES: Final = 32
ENTRY_HEAD_BYTES: Final = _ENTRY.size + _DIGEST.size
MAX_ENTRY_BYTES: Final = 16 << 10


class FrameError(Exception):
    """The peer sent what no peer of this version sends; drop the connection."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; the connection is dropped, check who uses this port")
        self.problem = problem


class OtherVersion(FrameError):
    """The peer sends what belongs to another version of this file."""

    def __init__(self, theirs: int) -> None:
        super().__init__(f"the peer speaks version {theirs}, not {VERSION}")
        self.theirs = theirs


class Welcome(enum.IntEnum):
    """What a receiver says to a hello."""

    COME_IN = 0
    OTHER_INCARNATION = 1
    OTHER_WORKER = 2
    OTHER_LAYOUT = 3
    FULL = 4
    # The frame's own version is the receiver's.
    OTHER_VERSION = 5


class Verdict(enum.IntEnum):
    """What became of a batch."""

    PUBLISHED = 0
    STALE = 1
    # Where bytes travel beside the connection: write now (receiver), all is written (sender).
    GRANTED = 2
    WRITTEN = 3


@dataclass(frozen=True, slots=True)
class Hello:
    """Whom a sender means to reach, and who it is."""

    worker_id: str
    incarnation: int
    sender_id: str
    num_blocks: int
    block_bytes: int
    token: bytes


@dataclass(frozen=True, slots=True)
class BatchHead:
    """The fixed part of a batch, from which the length of its tables follows."""

    sequence_number: int
    num_blocks: int
    num_checksums: int
    num_id_bytes: int

    @property
    def num_table_bytes(self) -> int:
        tables = self.num_id_bytes + 12 * (self.num_blocks + self.num_checksums)
        return _aligned(BATCH_HEAD_BYTES + tables + _DIGEST.size) - BATCH_HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict; a stale batch names the first block that is not granted as it says."""

    sequence_number: int
    verdict: Verdict
    block_id: int = 0
    # The generation that the block has now; 0 where it is granted to nobody.
    expected: int = 0


@dataclass(frozen=True, slots=True)
class Meeting:
    """By what the two sides of a process group know each other, and how much a batch may hold."""

    max_batch_bytes: int
    # Random, and told to nobody else; MEETING_SECRET_BYTES long.
    secret: bytes


def pack_hello(hello: Hello) -> bytes:
    """Raises: ValueError where a name is too long or the token of another size."""
    worker, sender = hello.worker_id.encode(), hello.sender_id.encode()
    if max(len(worker), len(sender)) > MAX_NAME_BYTES or len(hello.token) != TOKEN_BYTES:
        raise ValueError(f"names take up to {MAX_NAME_BYTES} bytes, a token {TOKEN_BYTES}")
    head = _HELLO.pack(
        _HELLO_MARK,
        VERSION,
        len(worker),
        len(sender),
        hello.num_blocks,
        hello.block_bytes,
        hello.incarnation,
        hello.token,
    )
    return _sealed(_padded(head + worker + sender, 0))


def hello_bytes(begin: bytes) -> int:
    """How long the hello is that begins so.

    Raises: FrameError as soon as it can be no hello; OtherVersion.
    """
    if not _HELLO_MARK.startswith(begin[:8]):
        raise FrameError("what came is no hello")
    if len(begin) < HELLO_HEAD_BYTES:
        return HELLO_HEAD_BYTES
    _, version, num_worker, num_sender, *_ = _HELLO.unpack_from(begin)
    if version != VERSION:
        if version > _MAX_VERSION:
            raise FrameError("what came is no hello")
        raise OtherVersion(version)
    if max(num_worker, num_sender) > MAX_NAME_BYTES:
        raise FrameError("a name in the hello is too long")
    return _aligned(_HELLO.size + num_worker + num_sender + _DIGEST.size)


def read_hello(frame: bytes) -> Hello:
    """Inverse of `pack_hello`. Raises: FrameError."""
    if hello_bytes(frame) != len(frame):
        raise FrameError("the hello has a wrong length")
    body = _opened(frame)
    _, _, num_worker, num_sender, num_blocks, block_bytes, incarnation, token = _HELLO.unpack_from(
        body
    )
    names = body[_HELLO.size : _HELLO.size + num_worker + num_sender]
    try:
        worker_id, sender_id = names[:num_worker].decode(), names[num_worker:].decode()
    except UnicodeDecodeError as error:
        raise FrameError("a name in the hello is no text") from error
    return Hello(worker_id, incarnation, sender_id, num_blocks, block_bytes, token)


def pack_welcome(verdict: Welcome, incarnation: int) -> bytes:
    """The answer to a hello."""
    return _sealed(_WELCOME.pack(_WELCOME_MARK, VERSION, verdict, incarnation))


def read_welcome(frame: bytes) -> tuple[Welcome, int]:
    """The verdict and the receiver's incarnation. Raises: FrameError, OtherVersion."""
    mark, version, verdict, incarnation = _WELCOME.unpack(_opened(frame))
    if mark == _WELCOME_MARK and version != VERSION:
        raise OtherVersion(version)
    if mark != _WELCOME_MARK or verdict not in list(Welcome):
        raise FrameError("what came is no welcome")
    return Welcome(verdict), incarnation


def pack_memory(base: int, metadata: bytes) -> bytes:
    """Where the pool lies in the receiver's memory, and what its agent says of itself."""
    head = _MEMORY.pack(_MEMORY_MARK, base, len(metadata))
    return _sealed(head) + _sealed(metadata)


def read_memory_head(frame: bytes) -> tuple[int, int]:
    """Base address, and the length of the sealed metadata that follows. Raises: FrameError."""
    mark, base, num_bytes = _MEMORY.unpack(_opened(frame))
    if mark != _MEMORY_MARK or num_bytes > MAX_METADATA_BYTES:
        raise FrameError("what came is no description of memory")
    return base, num_bytes + _DIGEST.size


def read_memory(frame: bytes) -> bytes:
    """The metadata. Raises: FrameError."""
    return _opened(frame)


def pack_meeting(meeting: Meeting) -> bytes:
    """What follows the welcome of a door that receives by process groups."""
    return _sealed(_MEETING.pack(_MEETING_MARK, meeting.max_batch_bytes, meeting.secret))


def read_meeting(frame: bytes) -> Meeting:
    """Inverse of `pack_meeting`. Raises: FrameError."""
    mark, max_batch_bytes, secret = _MEETING.unpack(_opened(frame))
    if mark != _MEETING_MARK or not max_batch_bytes:
        raise FrameError("what came does not say how to meet")
    return Meeting(max_batch_bytes, secret)


def pack_entry(key: str, value: bytes) -> bytes:
    """What one side of a meeting tells the other; without a key: there is no more.

    Raises: ValueError where it is longer than MAX_ENTRY_BYTES.
    """
    name = key.encode()
    if max(len(name), len(value)) > MAX_ENTRY_BYTES:
        raise ValueError(f"a key and its value take up to {MAX_ENTRY_BYTES} bytes each")
    return _sealed(_ENTRY.pack(_ENTRY_MARK, len(name), len(value))) + _sealed(name + value)


def entry_sizes(head: bytes) -> tuple[int, int]:
    """Bytes of the key, and of all that follows this head. Raises: FrameError."""
    mark, num_key, num_value = _ENTRY.unpack(_opened(head))
    if mark != _ENTRY_MARK or max(num_key, num_value) > MAX_ENTRY_BYTES:
        raise FrameError("what came belongs to no meeting")
    return num_key, num_key + num_value + _DIGEST.size


def read_entry(num_key_bytes: int, frame: bytes) -> tuple[str, bytes]:
    """Key and value, from what follows the head. Raises: FrameError."""
    body = _opened(frame)
    return body[:num_key_bytes].decode(errors="replace"), body[num_key_bytes:]


def pack_batch(sequence_number: int, transfer_id: str, blocks: TaggedBlocks) -> bytes:
    """Head and tables of a batch; the bytes of its blocks follow."""
    name = transfer_id.encode()[:MAX_NAME_BYTES]
    head = _BATCH.pack(
        _BATCH_MARK, sequence_number, len(blocks.dst), len(blocks.sampled), len(name)
    )
    tables = (
        name,
        blocks.dst.astype("<u4").tobytes(),
        blocks.tags.astype("<u8").tobytes(),
        blocks.sampled.astype("<u4").tobytes(),
        blocks.checksums.astype("<u8").tobytes(),
    )
    return _sealed(head) + _sealed(_padded(b"".join(tables), BATCH_HEAD_BYTES))


def read_batch_head(frame: bytes, num_blocks: int) -> BatchHead:
    """For a pool of `num_blocks`. Raises: FrameError."""
    mark, sequence_number, count, num_checksums, num_id_bytes = _BATCH.unpack(_opened(frame))
    if mark != _BATCH_MARK:
        raise FrameError("what came is no batch")
    if not 1 <= count <= min(num_blocks, MAX_BATCH_BLOCKS) or num_checksums > count:
        raise FrameError(f"a batch of {count} blocks with {num_checksums} checksums is refused")
    if num_id_bytes > MAX_NAME_BYTES:
        raise FrameError("a transfer id is too long")
    return BatchHead(sequence_number, count, num_checksums, num_id_bytes)


def read_tables(head: BatchHead, frame: bytes, num_blocks: int) -> tuple[str, TaggedBlocks]:
    """Transfer id and blocks, all of them inside the pool, none twice. Raises: FrameError."""
    body = _opened(frame)
    if len(body) != head.num_table_bytes - _DIGEST.size:
        raise FrameError("the tables of a batch have a wrong length")
    at = head.num_id_bytes
    dst = np.frombuffer(body, "<u4", head.num_blocks, at).astype(np.int64)
    at += 4 * head.num_blocks
    tags = np.frombuffer(body, "<u8", head.num_blocks, at).astype(np.uint64)
    at += 8 * head.num_blocks
    sampled = np.frombuffer(body, "<u4", head.num_checksums, at).astype(np.int64)
    at += 4 * head.num_checksums
    checksums = np.frombuffer(body, "<u8", head.num_checksums, at).astype(np.uint64)
    if int(dst.max()) >= num_blocks or len(np.unique(dst)) < len(dst):
        raise FrameError("a batch names a block outside the pool, or one twice")
    if not tags.all():
        raise FrameError("a batch names generation 0")
    if sampled.size and int(sampled.max()) >= head.num_blocks:
        raise FrameError("a checksum is of no block in the batch")
    transfer_id = body[: head.num_id_bytes].decode(errors="replace")
    return transfer_id, TaggedBlocks(dst, tags, sampled, checksums)


def pack_answer(answer: Answer) -> bytes:
    """A verdict on one batch."""
    return _sealed(
        _ANSWER.pack(
            _ANSWER_MARK, answer.sequence_number, answer.verdict, answer.block_id, answer.expected
        )
    )


def read_answer(frame: bytes) -> Answer:
    """Inverse of `pack_answer`. Raises: FrameError."""
    mark, sequence_number, verdict, block_id, expected = _ANSWER.unpack(_opened(frame))
    if mark != _ANSWER_MARK or verdict not in list(Verdict):
        raise FrameError("what came is no answer to a batch")
    return Answer(sequence_number, Verdict(verdict), block_id, expected)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _padded(body: bytes, num_bytes_before: int) -> bytes:
    length = num_bytes_before + len(body) + _DIGEST.size
    return body + bytes(_aligned(length) - length)


def _sealed(body: bytes) -> bytes:
    return body + _DIGEST.pack(xxhash.xxh3_64_intdigest(body))


def _opened(frame: bytes) -> bytes:
    body, digest = frame[: -_DIGEST.size], frame[-_DIGEST.size :]
    if len(digest) < _DIGEST.size or digest != _DIGEST.pack(xxhash.xxh3_64_intdigest(body)):
        raise FrameError("a frame does not match its checksum")
    return body
