"""Commands become frames: in order, none too large, without holding the event loop up."""

import asyncio
import gc
import random
import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.command_frames import Outgoing, frames, max_sequence_tokens
from router.testing import spec_of, target_on
from runtime.wire import Heartbeat, decode_request, encode_commands
from scheduling.ids import TaskId
from scheduling.messages import (
    Admission,
    AdmitGeneration,
    CancelTask,
    PushTo,
    SequenceSpec,
    SetAdmission,
    StartDecode,
    StartPrefill,
)
from tandemserve.internal.v1 import worker_pb2 as pb

LIMIT = 64 * 1024
VOCABULARY = 128_256


def sequence_of(num_tokens: int) -> SequenceSpec:
    spec = spec_of(num_prompt=1)
    ids = (VOCABULARY - 1,) * num_tokens
    return SequenceSpec(ids, (), spec.sampling, spec.stop)


async def packed(items: Iterable[Outgoing], limit: int = LIMIT) -> list[pb.SessionRequest]:
    outbox: asyncio.Queue[Outgoing] = asyncio.Queue()
    for item in items:
        outbox.put_nowait(item)
    outbox.put_nowait(None)
    return [frame async for frame in frames(outbox, limit)]


def unpacked(sent: list[pb.SessionRequest]) -> list[object]:
    items: list[object] = []
    for frame in sent:
        content = decode_request(frame)
        items += content if isinstance(content, tuple) else [content]
    return items


async def test_large_commands_travel_alone() -> None:
    most = max_sequence_tokens(LIMIT, VOCABULARY)
    items = [StartPrefill(TaskId(f"r/{n}~1"), sequence_of(most)) for n in range(9)]
    sent = await packed(items)
    assert unpacked(sent) == items
    assert max(frame.ByteSize() for frame in sent) <= LIMIT


async def test_small_commands_travel_together() -> None:
    sent = await packed(CancelTask(TaskId(f"r/{n}~1"), "over") for n in range(3))
    assert len(sent) == 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.integers(1, max_sequence_tokens(LIMIT, VOCABULARY)),
            st.sampled_from(["cancel", "push", "peer", "admission", "beat", "decode"]),
        ),
        max_size=30,
    )
)
def test_frames_keep_the_order_and_the_limit(plan: list[int | str]) -> None:
    items: list[Outgoing] = []
    for number, kind in enumerate(plan):
        task, target = TaskId(f"r/0~{number}"), target_on("decode-0", 60)
        match kind:
            case int():
                items.append(StartPrefill(task, sequence_of(kind)))
            case "cancel":
                items.append(CancelTask(task, "over"))
            case "push":
                items.append(PushTo(task, target))
            case "peer":
                items.append(target.export)
            case "admission":
                items.append(SetAdmission(Admission.CORDONED))
            case "beat":
                items.append(Heartbeat(number))
            case _:
                items.append(StartDecode(task, (1, 2)))
    sent = asyncio.run(packed(items))
    assert unpacked(sent) == items
    assert max((frame.ByteSize() for frame in sent), default=0) <= LIMIT


@pytest.mark.parametrize("vocab_size", [100, 128, 129, 32_000, VOCABULARY, 2**21 + 1])
def test_what_is_accepted_fits_into_one_frame_with_everything_beside(vocab_size: int) -> None:
    num_tokens = max_sequence_tokens(LIMIT, vocab_size)
    spec = spec_of(num_prompt=1)
    ids = (vocab_size - 1,) * num_tokens
    sequence = SequenceSpec(ids, (), spec.sampling, spec.stop, cache_salt="s" * 128)
    command = AdmitGeneration(TaskId("r" * 128 + "/0~1"), sequence, 2**31 - 1, 2**31 - 1, "t" * 300)
    (frame,) = asyncio.run(packed([command]))
    assert frame.ByteSize() <= LIMIT
    assert frame.ByteSize() > LIMIT - 45_000


@pytest.fixture
def no_collector() -> Iterator[None]:
    """A collection visits all that other tests have left, in whichever thread it happens."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_long_prompt_is_encoded_while_the_event_loop_goes_on() -> None:
    """Measured in processor time of the loop's thread: others may use the machine as well."""
    rng = random.Random(1)
    ids = tuple(rng.choices(range(VOCABULARY), k=1_000_000))
    spec = spec_of(num_prompt=1)
    command = StartPrefill(TaskId("r/0~1"), SequenceSpec(ids, (), spec.sampling, spec.stop))
    began_s = time.thread_time()
    encode_commands([command])
    at_once_s = time.thread_time() - began_s
    longest_s, is_over = 0.0, asyncio.Event()

    async def tick() -> None:
        nonlocal longest_s
        while not is_over.is_set():
            began_s = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - began_s)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    (frame,) = await packed([command], limit=64 * 1024 * 1024)
    is_over.set()
    await ticking
    (sent,) = frame.commands.commands
    assert tuple(sent.start_prefill.sequence.prompt_token_ids) == ids
    assert longest_s < at_once_s / 3
