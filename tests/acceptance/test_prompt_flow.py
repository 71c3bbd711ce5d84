"""A hundred megabytes of prompts a second, offered to one real router; the workers are fake.

That is more than it can take. Clients come again at once, though they are told to wait. What is let
in gets the right answer, all else is refused at once, others are served, and memory stays within
what max_prompt_mib says.
"""

import asyncio
import json
import random
import sys
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.leak_check import check_for_leaks
from deploy.local.router_with_fakes_testing import RouterWithFakes as Place
from deploy.local.router_with_fakes_testing import router_with_fakes
from deploy.local.settings import ROOT
from engine.bundled import bundled_model_path
from engine.tokenizer import Tokenizer
from runtime.clock import MonotonicClock
from runtime.grpc_server import build_channel
from scheduling.ids import WorkerId
from scheduling.messages import SequenceSpec
from tandemserve import AsyncClient
from tandemserve.api.v1 import inference_pb2 as pb
from worker.testing import FakeWorker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 240.0
MIB = 1024 * 1024
CONTEXT = 50_000_000
VOCABULARY = 2048
# Of token ids; texts are shorter, since a tokenizer takes many times their size while it works.
PROMPT_BYTES, TEXT_BYTES = 500_000, 200_000
NUM_CLIENTS, CALLS_PER_CLIENT = 2, 32
# Together; where the machine has nothing else to do, it takes four seconds.
OFFERED_BYTES, BYTES_PER_S = 500_000_000, 120_000_000
# For nine of the long ones.
MAX_PROMPT_MIB = 64
# What a bystander allows for an answer, on a machine that may be busy with other tests as well.
DEADLINE_S = 30.0


def token_of(prompt_token_ids: Sequence[int]) -> int:
    """What the workers answer to a prompt: every one of its tokens counts."""
    return crc32(array("I", prompt_token_ids).tobytes()) % VOCABULARY


def token_for(sequence: SequenceSpec) -> int:
    return token_of(sequence.prompt_token_ids)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    names, folder = ("prefill-0", "decode-0"), tmp_path_factory.mktemp("flow")
    workers = (FakeWorker(WorkerId(name), token_of=token_for) for name in names)
    limit = str(MAX_PROMPT_MIB)
    async with router_with_fakes(
        folder, *workers, context_length=CONTEXT, max_prompt_mib=limit
    ) as there:
        yield there


def requests(seed: int) -> list[tuple[pb.GenerateRequest, int]]:
    """Two prompts as text and two as token ids, and the token that answers each."""
    rng, tokenizer = random.Random(seed), Tokenizer.from_folder(bundled_model_path())
    made: list[tuple[pb.GenerateRequest, int]] = []
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(3000)]
    for _ in range(2):
        text = " ".join(rng.choices(words, k=TEXT_BYTES // 2))[:TEXT_BYTES]
        made.append((pb.GenerateRequest(text=text), token_of(tokenizer.encode(text))))
        ids = rng.choices(range(1000, 2000), k=PROMPT_BYTES // 2)
        made.append((pb.GenerateRequest(tokens=pb.TokenPrompt(ids=ids)), token_of(ids)))
    for request, _ in made:
        request.stop.max_tokens, request.stop.ignore_eos = 1, True
        request.request_class = pb.REQUEST_CLASS_BATCH
    return made


OFFER = """
import asyncio, json, sys, time
from pathlib import Path
import grpc
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.rpc_errors import error_from_rpc

address, files = sys.argv[1], sorted(Path(sys.argv[2]).iterdir())
num_calls, num_bytes, bytes_per_s = map(int, sys.argv[3:])
messages = [path.read_bytes() for path in files]
found = {"answers": [], "refusals": [], "others": [], "num_bytes": 0, "began_s": time.monotonic()}

async def offer(generate, number, places):
    began_s, tokens = time.monotonic(), []
    try:
        async for response in generate(messages[number], timeout=120):
            tokens += response.delta.token_ids
        found["answers"].append((number, tokens))
    except grpc.aio.AioRpcError as error:
        refusal = error_from_rpc(error, target=address)
        if refusal.code == "queue_full" and refusal.retry_after_s:
            found["refusals"].append(time.monotonic() - began_s)
        else:
            found["others"].append(repr(refusal))
    finally:
        places.release()

async def main():
    path, read = "/tandemserve.api.v1.InferenceService/Generate", pb.GenerateResponse.FromString
    places, number = asyncio.Semaphore(num_calls), 0
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        generate = channel.unary_stream(path, response_deserializer=read)
        while found["num_bytes"] < num_bytes:
            await places.acquire()
            due_s = found["began_s"] + found["num_bytes"] / bytes_per_s
            await asyncio.sleep(max(0, due_s - time.monotonic()))
            number = (number + 1) % len(messages)
            found["num_bytes"] += len(messages[number])
            group.create_task(offer(generate, number, places))
        found["ended_s"] = time.monotonic()
    print(json.dumps(found))

asyncio.run(main())
"""


@asynccontextmanager
async def offering(place: Place, folder: Path) -> AsyncIterator["asyncio.Future[list[Any]]"]:
    """All clients at work; the future has what each of them has seen."""
    numbers = (CALLS_PER_CLIENT, OFFERED_BYTES // NUM_CLIENTS, BYTES_PER_S // NUM_CLIENTS)
    command = (sys.executable, "-c", OFFER, place.address, str(folder), *map(str, numbers))
    children = [
        await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        for _ in range(NUM_CLIENTS)
    ]
    try:
        yield asyncio.gather(*(child.communicate() for child in children))
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()


class Watch:
    """Small requests, health checks and a look at the router's memory, one after the other."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.num_looks = 0
        self.longest_s = 0.0
        self.most_bytes = place.num_bytes

    async def until_done(self, offers: "asyncio.Future[list[Any]]") -> None:
        clock = MonotonicClock()
        tokenizer = Tokenizer.from_folder(bundled_model_path())
        # The second is too long to be tokenised without a thread.
        prompts = ("hello", "Once upon a time. " * 60)
        expected = [[token_of(tokenizer.encode(text))] * 20 for text in prompts]
        async with (
            AsyncClient(self._place.address, max_retries=0) as client,
            build_channel(self._place.address) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            while not offers.done():
                began_at_s = clock.now()
                for text, tokens in zip(prompts, expected, strict=True):
                    answer = await client.generate(
                        text,
                        max_tokens=20,
                        ignore_eos=True,
                        # What is later than its goal yields to others.
                        ttft_ms=1000 * DEADLINE_S,
                        timeout_s=DEADLINE_S,
                    )
                    assert list(answer.token_ids) == tokens
                check = health_pb2.HealthCheckRequest()
                serving = await health.Check(check, timeout=DEADLINE_S)
                assert serving.status == health_pb2.HealthCheckResponse.SERVING
                self.longest_s = max(self.longest_s, clock.now() - began_at_s)
                self.most_bytes = max(self.most_bytes, self._place.num_bytes)
                self.num_looks += 1


async def test_five_hundred_megabytes_of_prompts_are_answered_or_refused_and_harm_nobody(
    place: Place, tmp_path: Path
) -> None:
    offered = requests(seed=11)
    for number, (request, _) in enumerate(offered):
        (tmp_path / f"{number}.bin").write_bytes(request.SerializeToString())
    watch, before = Watch(place), place.num_bytes
    async with offering(place, tmp_path) as offers, asyncio.timeout(PATIENCE_S):
        await watch.until_done(offers)
        seen = [json.loads(out) for out, _ in await offers]
    answers = [answer for each in seen for answer in each["answers"]]
    refusals_s = sorted(s for each in seen for s in each["refusals"])
    assert [each["others"] for each in seen] == [[]] * NUM_CLIENTS
    # Of each kind some are let in, and no answer is wrong.
    assert {number for number, _ in answers} == set(range(len(offered)))
    assert [tokens for _, tokens in answers] == [[offered[number][1]] for number, _ in answers]
    assert sum(each["num_bytes"] for each in seen) >= OFFERED_BYTES
    took_s = max(each["ended_s"] for each in seen) - min(each["began_s"] for each in seen)
    grown = watch.most_bytes - before
    # A machine that takes all of it refuses nobody.
    longest_s = max(refusals_s, default=0.0)
    print(
        f"{OFFERED_BYTES / took_s / 1e6:.0f} MB/s offered for {took_s:.1f} s; {len(answers)} "
        f"answered, {len(refusals_s)} refused, all within {longest_s:.3f} s; "
        f"{watch.num_looks} looks of at most {watch.longest_s:.2f} s; {grown / MIB:.0f} MiB"
    )
    assert watch.num_looks > 0
    assert longest_s < DEADLINE_S
    assert grown < _memory_bound()
    await _is_empty_and_serves(place, offered)


def _memory_bound() -> int:
    """What prompts may take, what is on its way in, and what the tokenising of two takes."""
    on_the_way = 2 * NUM_CLIENTS * CALLS_PER_CLIENT * PROMPT_BYTES
    return MAX_PROMPT_MIB * MIB + on_the_way + 2 * 250 * TEXT_BYTES


async def _is_empty_and_serves(
    place: Place, offered: Sequence[tuple[pb.GenerateRequest, int]]
) -> None:
    async with AsyncClient(place.address) as client:
        leaks = await check_for_leaks(client, PATIENCE_S)
        assert leaks.is_clean, leaks.line()
        queues, status = await client.admin.queues(), await client.admin.status()
        assert (queues.num_prompt_tasks, queues.num_generation_tasks) == (0, 0)
        assert (status.num_prefilling, status.num_transferring, status.num_decoding) == (0, 0, 0)
        assert [worker.num_tasks for worker in place.workers] == [0, 0]
        # As many as there is room for: nobody keeps any.
        ids, token = list(offered[1][0].tokens.ids), offered[1][1]
        calls = [client.generate(ids, max_tokens=1, ignore_eos=True) for _ in range(9)]
        answers = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)
        assert [list(answer.token_ids) for answer in answers] == [[token]] * 9
