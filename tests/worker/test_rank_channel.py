"""Messages between ranks arrive whole, or the other side is lost."""

import pickle
import socket
import struct
from collections.abc import Iterator

import pytest

from engine.runner import RankLost
from runtime.worker_config import DecodeConfig, PrefillConfig
from scheduling.ids import BlockId, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from scheduling.worker_events import (
    DropSequence,
    ExtendSequence,
    KvArrived,
    Push,
    PushFinished,
    ReplaceBlocks,
    SwapOut,
)
from worker.rank_channel import RankChannel
from worker.rank_messages import (
    MAX_MESSAGE_BYTES,
    MAX_REASON_CHARS,
    KvExpected,
    KvHappened,
    PoolMade,
    PoolSize,
    RankCalls,
    RankFailed,
    RankLoaded,
    RankMessage,
    RankSpec,
    RankStarted,
    TokensSampled,
    decode,
    encode,
    public_settings,
)
from worker.transports import transports_of

PATIENCE_S = 60.0
EXPORT = KvExport("tcp", "here", 4, 32, WorkerId("d"), Incarnation(1), "host", other_ranks=())
CONFIG = DecodeConfig.model_validate({"model": "/m"})
SAMPLING = SamplingParams(logit_bias=((3, 0.5),), num_prompt_logprobs=2)
MESSAGES: list[RankMessage] = [
    RankSpec("decode", CONFIG.model_dump_json(), 1, 7, 2, "/m/meeting", 30.0),
    PoolSize(8, 2),
    RankCalls(
        (
            SequenceStart(0, (1, 2), 1, SAMPLING, (4,)),
            ExtendSequence(0, (BlockId(5),)),
            ReplaceBlocks(0, 1, (BlockId(6),)),
            TokensSampled((0,), (9,)),
            StepPlan((ScheduledChunk(0, 2, 1, True),)),
            DropSequence(0),
            SwapOut((BlockId(1),), (BlockId(2),)),
            Push(TaskId("t"), KvTarget("x", EXPORT, (BlockId(1),), ()), 0, (BlockId(1),)),
        )
    ),
    RankStarted(),
    RankLoaded("any", 7),
    PoolMade(EXPORT),
    KvExpected(),
    KvHappened((PushFinished(TaskId("t"), 1, 2, 0.5), KvArrived(TaskId("t")))),
    RankFailed("no memory"),
]


@pytest.fixture
def ends() -> Iterator[tuple[RankChannel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = RankChannel(ours, timeout_s=0.3)
    yield channel, theirs
    channel.close()
    theirs.close()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_arrives_as_it_was_sent(message: RankMessage) -> None:
    ours, theirs = socket.socketpair()
    sender, receiver = RankChannel(ours, PATIENCE_S), RankChannel(theirs, PATIENCE_S)
    sender.send(message)
    assert receiver.receive(PATIENCE_S) == message
    assert receiver.receive(0) is None
    sender.close()
    with pytest.raises(RankLost, match="has ended"):
        receiver.receive(None)
    receiver.close()


def test_why_a_rank_cannot_go_on_is_one_line_whatever_it_was() -> None:
    device = RuntimeError("CUDA error: out of order\n  see the log\n\nfor more")
    assert RankFailed.of(device).message == "CUDA error: out of order see the log for more"
    assert RankFailed.of(MemoryError()).message == "MemoryError"
    assert len(RankFailed.of(RuntimeError("x" * 10**6)).message) < MAX_REASON_CHARS + 10


def test_the_settings_of_a_worker_arrive_without_its_secrets() -> None:
    config = PrefillConfig.model_validate({"model": "/m", "tensor_parallel_size": 2})
    secret = config.model_copy(update={"redis_url": "redis://:secret@host:1"})
    spec = RankSpec("prefill", public_settings(secret), 1, 7, 2, "/m/meeting", 30.0)
    assert "secret" not in repr(spec)
    assert decode(encode(spec)).config() == config


@pytest.mark.parametrize("fields", [{}, {"transports": ("tcp",)}])
def test_what_nobody_set_is_a_default_at_every_rank(fields: dict[str, object]) -> None:
    config = DecodeConfig.model_validate({"model": "/m", "device": "cuda", **fields})
    spec = RankSpec("decode", public_settings(config), 1, 7, 2, "/m/meeting", 30.0)
    assert list(transports_of(spec.config(), 1)) == list(transports_of(config))


def test_nothing_but_values_of_ours_is_read() -> None:
    for value in (print, socket.socket, SystemExit()):
        with pytest.raises(pickle.UnpicklingError, match="is no value that ranks exchange"):
            decode(pickle.dumps(value))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!Q", 4) + b"oops",
        struct.pack("!Q", MAX_MESSAGE_BYTES + 1),
        # The rest never comes.
        struct.pack("!Q", 100) + b"half",
        b"\x00",
    ],
)
def test_a_message_that_is_none_loses_the_other_rank(
    ends: tuple[RankChannel, socket.socket], data: bytes
) -> None:
    channel, other = ends
    other.sendall(data)
    with pytest.raises(RankLost):
        channel.receive(PATIENCE_S)


def test_a_rank_that_takes_no_messages_is_lost_in_time(
    ends: tuple[RankChannel, socket.socket],
) -> None:
    channel, _ = ends
    large = RankFailed("x" * (1 << 20))
    with pytest.raises(RankLost, match="does not take messages"):
        send_often(channel, large)


def send_often(channel: RankChannel, message: RankMessage) -> None:
    for _ in range(64):
        channel.send(message)
