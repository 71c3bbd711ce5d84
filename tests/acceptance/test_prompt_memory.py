"""What large texts leave behind in an idle router: nearly nothing, and no work for nobody."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
import pytest_asyncio

from deploy.local.router_with_fakes_testing import RouterWithFakes as Place
from deploy.local.router_with_fakes_testing import router_with_fakes
from runtime.clock import MonotonicClock
from scheduling.ids import WorkerId
from tandemserve.api.v1 import inference_pb2 as pb
from worker.testing import FakeWorker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 240.0
MIB = 1024 * 1024
NUM_CHATS = 8
CONTEXT = 50_000_000
Until = Callable[..., Awaitable[float]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    workers = (FakeWorker(WorkerId(name)) for name in ("prefill-0", "decode-0"))
    folder = tmp_path_factory.mktemp("memory")
    async with router_with_fakes(folder, *workers, context_length=CONTEXT) as there:
        # Whatever the first request makes it load is not what large texts leave behind.
        assert await _code_of(there, pb.GenerateRequest(text="hello")) == "OK"
        yield there


async def _code_of(place: Place, request: pb.GenerateRequest, timeout_s: float = 60.0) -> str:
    request.stop.max_tokens, request.stop.ignore_eos = 1, True
    try:
        async for _ in place.stub.Generate(request, timeout=timeout_s):
            pass
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


def _chats(num_chars: int) -> list[pb.GenerateRequest]:
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(3000)]
    text = " ".join(rng.choices(words, k=num_chars // 2))[:num_chars]
    message = pb.ChatMessage(role="user", content=text)
    return [pb.GenerateRequest(chat=pb.ChatPrompt(messages=[message])) for _ in range(NUM_CHATS)]


async def test_an_idle_router_has_given_back_what_large_texts_took(
    place: Place, until: Until
) -> None:
    before = place.num_bytes
    calls = (_code_of(place, chat, PATIENCE_S) for chat in _chats(1_500_000))
    assert await asyncio.gather(*calls) == ["OK"] * NUM_CHATS
    after = place.num_bytes

    async def is_small() -> bool:
        return place.num_bytes - before < 100 * MIB

    await until(is_small)
    print(f"{(after - before) / MIB:.0f} MiB more at the end of the calls, fewer than 100 later")


async def test_nothing_is_tokenised_for_callers_whose_deadline_has_passed(
    place: Place, until: Until
) -> None:
    """Tokenising all of it would take ten seconds and more of processor time."""
    # However fast that is here, nobody is answered.
    prefill, _ = place.workers
    prefill.holds_prompts = True
    calls = (_code_of(place, chat, 1.0) for chat in _chats(4_900_000))
    assert set(await asyncio.gather(*calls)) == {"DEADLINE_EXCEEDED"}
    prefill.let_go()
    began_s, clock = place.cpu_s, MonotonicClock()
    looked = (clock.now(), began_s)

    async def is_calm() -> bool:
        """After a second in which it had less than a tenth of a core."""
        nonlocal looked
        (at_s, cpu_s), now = looked, (clock.now(), place.cpu_s)
        if now[0] - at_s < 1.0:
            return False
        looked = now
        return now[1] - cpu_s < 0.1

    await until(is_calm)
    print(f"{place.cpu_s - began_s:.2f} s of processor time after the last deadline")
    assert place.cpu_s - began_s < 1.5
    assert await _code_of(place, pb.GenerateRequest(text="hello")) == "OK"
