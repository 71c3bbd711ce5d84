"""What no request may have: each a status, a code and a hint; nothing leaks and all goes on."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from engine.native.library import find_compiler
from runtime.grpc_server import build_channel
from tandemserve import (
    AsyncClient,
    CanNeverFit,
    Completion,
    DuplicateRequest,
    NoWorkerAvailable,
    QueueFull,
    TandemError,
    WorkerView,
)
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc
from tandemserve.rpc_errors import error_from_rpc

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
ExtraWorker = Callable[..., AbstractAsyncContextManager[ChildProcess]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]
HealthOf = Callable[[WorkerView, str], Awaitable[int]]

# Of the random models.
CONTEXT, VOCABULARY = 512, 320
# The decode worker holds less than the context.
NUM_BLOCKS, BLOCK_SIZE = 16, 16
MAX_QUEUE = 8
GOOD_PROMPT = "The router decides"
PATIENCE_S = 120.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        num_decode=1,
        router={"max_prompt_queue": str(MAX_QUEUE)},
        decode={"num_blocks": str(NUM_BLOCKS)},
    ) as running:
        yield running


def request(**fields: object) -> pb.GenerateRequest:
    """A good request but for these fields."""
    good: dict[str, object] = {
        "text": GOOD_PROMPT,
        "stop": pb.StopConditions(max_tokens=4),
        "sampling": pb.SamplingParams(temperature=0.0),
    }
    if {"chat", "tokens"} & fields.keys():
        del good["text"]
    return pb.GenerateRequest(**good | fields)  # type: ignore[arg-type]


def sampling(**fields: object) -> pb.GenerateRequest:
    return request(sampling=pb.SamplingParams(**fields))  # type: ignore[arg-type]


def stop(**fields: object) -> pb.GenerateRequest:
    return request(stop=pb.StopConditions(**fields))  # type: ignore[arg-type]


def tokens(*ids: int) -> pb.GenerateRequest:
    return request(tokens=pb.TokenPrompt(ids=ids))


def chat(*turns: tuple[str, str]) -> pb.GenerateRequest:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    return request(chat=pb.ChatPrompt(messages=messages))


NO_PROMPT = request()
NO_PROMPT.ClearField("text")
UNKNOWN_CLASS = request()
UNKNOWN_CLASS.request_class = 99  # type: ignore[assignment]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
# Request, status, code, and what the message says: the field, the problem, the way out.
CASES: dict[str, tuple[pb.GenerateRequest, grpc.StatusCode, str, str]] = {
    "unknown model": (
        request(model="gpt"),
        grpc.StatusCode.NOT_FOUND,
        "unknown_model",
        "'gpt' is not served here; ask for 'llama'",
    ),
    "no prompt": (NO_PROMPT, INVALID, "invalid_request", "prompt: is missing; set text, chat or"),
    "empty text": (request(text=""), INVALID, "invalid_request", "text: .*empty; send at least"),
    "no tokens": (tokens(), INVALID, "invalid_request", "tokens: .*empty; send at least one"),
    "no messages": (chat(), INVALID, "invalid_request", "chat: no messages; send at least one"),
    "unknown role": (
        chat(("king", "hi")),
        INVALID,
        "invalid_request",
        "message 0: role must be one of .*user",
    ),
    "prompt beyond context": (
        tokens(*[5] * CONTEXT),
        INVALID,
        "context_too_long",
        f"prompt has {CONTEXT} tokens.*context is {CONTEXT}; shorten",
    ),
    "max_tokens beyond context": (
        stop(max_tokens=CONTEXT),
        INVALID,
        "context_too_long",
        f"exceed the model's context of {CONTEXT}; ask for at most",
    ),
    "max_tokens 0": (stop(max_tokens=0), INVALID, "invalid_request", "max_tokens: .*at least 1"),
    "empty stop": (stop(strings=["a", ""]), INVALID, "invalid_request", "stop: .*use 1 to 256"),
    "many stops": (stop(strings=["a"] * 17), INVALID, "invalid_request", "stop: .*at most 16"),
    "17 answers": (request(n=17), INVALID, "invalid_request", "n: 17.*at most 16"),
    "21 logprobs": (request(num_logprobs=21), INVALID, "invalid_request", "num_logprobs: 21.*20"),
    "token outside": (
        tokens(5, VOCABULARY),
        INVALID,
        "invalid_request",
        f"tokens: .*{VOCABULARY}.* not in the vocabulary of {VOCABULARY}",
    ),
    "huge token": (tokens(2**32 - 1), INVALID, "invalid_request", "tokens: .*not in the vocab"),
    "stop token outside": (
        stop(max_tokens=4, token_ids=[VOCABULARY]),
        INVALID,
        "invalid_request",
        f"stop_token_ids: .*{VOCABULARY}.* not in the vocabulary",
    ),
    "unknown class": (UNKNOWN_CLASS, INVALID, "invalid_request", "request_class: 99 .*use INTER"),
    "bad id": (request(request_id="a b"), INVALID, "invalid_request", "request_id: use 1 to 128"),
    "long id": (request(request_id="a" * 129), INVALID, "invalid_request", "request_id: use 1 to"),
    "bad tenant": (request(tenant="a\n"), INVALID, "invalid_request", "tenant: use 1 to 128"),
    "no goal": (
        request(service_level=pb.ServiceLevel(ttft_ms=math.nan)),
        INVALID,
        "invalid_request",
        "ttft_ms: nan is no goal; use milliseconds above 0",
    ),
    "can never fit": (
        stop(max_tokens=NUM_BLOCKS * BLOCK_SIZE),
        grpc.StatusCode.FAILED_PRECONDITION,
        "can_never_fit",
        f"holds {NUM_BLOCKS * BLOCK_SIZE}; shorten the request or start workers with more",
    ),
}
for _value in (-0.1, math.nan, math.inf, -math.inf):
    CASES[f"temperature {_value}"] = (
        sampling(temperature=_value), INVALID, "invalid_request", "temperature: .*use 0"
    )  # fmt: skip
for _value in (0.0, -0.5, 1.1, math.nan, math.inf):
    CASES[f"top_p {_value}"] = (sampling(top_p=_value), INVALID, "invalid_request", "top_p: .*use")
CASES["top_k -1"] = (sampling(top_k=-1), INVALID, "invalid_request", "top_k: .*use 0")


async def failure_of(cluster: LocalCluster, bad: pb.GenerateRequest) -> grpc.aio.AioRpcError:
    async with build_channel(cluster.endpoint, max_message_bytes=1 << 20) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(bad, timeout=PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call))
    return caught.value


async def good_answer(client: AsyncClient, **options: object) -> Completion:
    settings = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}
    return await client.generate(GOOD_PROMPT, **settings | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(CASES))
async def test_a_bad_request_is_refused_with_a_code_and_a_hint(
    cluster: LocalCluster, name: str
) -> None:
    bad, status, code, message = CASES[name]
    failure = await failure_of(cluster, bad)
    error = error_from_rpc(failure, target="")
    assert (failure.code(), error.code) == (status, code)
    assert re.search(message, error.message), error.message
    assert error.gpu_work_spent is False
    assert error.retry_after_s is None


async def test_after_all_of_them_nothing_is_held_and_a_good_request_succeeds(
    cluster: LocalCluster, assert_empty: AssertEmpty
) -> None:
    for bad, *_ in CASES.values():
        await failure_of(cluster, bad)
    await assert_empty(cluster)
    async with cluster.client() as client:
        assert len((await good_answer(client)).token_ids) == 6
        status = await client.admin.status()
    assert status.num_failed == 0


async def test_a_repeated_id_replays_the_same_request_and_refuses_another(
    cluster: LocalCluster,
) -> None:
    async with cluster.client() as client:
        first = await good_answer(client, request_id="twice", temperature=0.9, seed=5)
        stream = client.stream(
            GOOD_PROMPT,
            request_id="twice",
            temperature=0.9,
            seed=5,
            max_tokens=6,
            ignore_eos=True,
        )
        again = await stream.completion()
        assert stream.accepted is not None
        assert stream.accepted.attached
        assert again.choices == first.choices
        with pytest.raises(DuplicateRequest, match="other content; choose another id"):
            await good_answer(client, request_id="twice", temperature=0.9, seed=6)
    bad = request(request_id="twice")
    assert (await failure_of(cluster, bad)).code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_repeated_id_of_a_running_request_takes_its_stream_over(
    cluster: LocalCluster,
) -> None:
    options = {"request_id": "running", "max_tokens": 200, "seed": 5, "ignore_eos": True}
    async with cluster.client() as client:
        first = client.stream(GOOD_PROMPT, **options)  # type: ignore[arg-type]
        await anext(first)
        second = client.stream(GOOD_PROMPT, **options)  # type: ignore[arg-type]
        answer = await second.completion()
        assert second.accepted is not None
        assert second.accepted.attached
        assert len(answer.token_ids) == 200
        first.cancel()
        fresh = await client.generate(GOOD_PROMPT, **options | {"request_id": "fresh"})  # type: ignore[arg-type]
    assert fresh.token_ids == answer.token_ids


async def test_a_full_queue_refuses_with_a_delay_and_goes_on(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    saboteur = Saboteur(cluster)
    async with AsyncClient(cluster.endpoint, max_retries=0) as client:
        # While no prompt is computed, most of them find the queue full.
        saboteur.freeze("prefill-0")
        calls = [
            asyncio.ensure_future(
                client.generate([5] * 200, max_tokens=4, ignore_eos=True, timeout_s=PATIENCE_S)
            )
            for _ in range(64)
        ]

        async def is_refusing() -> bool:
            return any(call.done() for call in calls)

        try:
            await until(is_refusing)
        finally:
            saboteur.thaw_all()
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, TandemError)]
        assert {type(error) for error in refused} == {QueueFull}, "and no other error"
        for error in refused:
            assert f"its limit is {MAX_QUEUE}; retry later" in error.message
            assert (error.retry_after_s, error.gpu_work_spent) == (1.0, False)
        served = [result for result in results if isinstance(result, Completion)]
        assert len(served) >= MAX_QUEUE
        assert len(served) + len(refused) == 64
        assert all(len(answer.token_ids) == 4 for answer in served)
        # n answers wait as n tasks.
        with pytest.raises(QueueFull):
            await good_answer(client, n=MAX_QUEUE + 1)
        await assert_empty(cluster)
        assert len((await good_answer(client)).token_ids) == 6


async def test_without_a_prefill_worker_requests_are_refused_until_there_is_one(
    cluster: LocalCluster, health_of: HealthOf, assert_empty: AssertEmpty, until: Until
) -> None:
    prefill = cluster.process("prefill-0")
    prefill.terminate()
    assert await prefill.wait_ended(PATIENCE_S)

    async def is_gone() -> bool:
        return all(view.role != "prefill" for view in await cluster.workers())

    await until(is_gone)
    # Whoever watches over processes must not restart a decode worker that is well.
    service = "tandemserve.internal.v1.WorkerService"
    (view,) = await cluster.workers()
    for name in ("", service):
        assert await health_of(view, name) == health_pb2.HealthCheckResponse.SERVING
    failure = await failure_of(cluster, request())
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    error = error_from_rpc(failure, target="")
    assert isinstance(error, NoWorkerAvailable)
    assert "no prefill worker is connected; start one" in error.message
    # More where the worker has been away for so long that it must have ended.
    assert error.retry_after_s is not None
    assert error.retry_after_s >= 1.0
    prefill.start()
    await cluster.wait_ready("prefill-0")
    async with cluster.client() as client:
        assert len((await good_answer(client)).token_ids) == 6
    await assert_empty(cluster)


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "bfloat16"},
        {"kv_dtype": "fp8_e4m3"},
        {"attention": "torch"},
        {"kv_slices": "2"},
    ],
    ids=str,
)
async def test_workers_of_different_dtype_attention_or_slices_are_never_paired(
    other: dict[str, str],
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    async def is_state(worker_id: str, state: str) -> bool:
        return any(
            (view.worker_id, view.state) == (worker_id, state) for view in await cluster.workers()
        )

    async def is_gone(worker_id: str) -> bool:
        return all(view.worker_id != worker_id for view in await cluster.workers())

    folder = model_folders["llama"]
    if "attention" in other and find_compiler() is None:
        pytest.skip("without a C compiler the usual attention is torch, too")
    settings = other | {"num_blocks": "64"}
    decode = cluster.process("decode-0")
    async with (
        extra_worker(cluster, "decode_worker", folder, "decode-other", **settings),
        cluster.client() as client,
    ):
        await until(lambda: is_state("decode-other", "ready"))
        # The larger worker computes otherwise, so it is no help.
        with pytest.raises(CanNeverFit):
            await client.generate([5] * 300, max_tokens=4)
        answer = await good_answer(client)
        assert answer.timings.decode_worker == "decode-0"
        decode.terminate()
        assert await decode.wait_ended(PATIENCE_S)
        await until(lambda: is_gone("decode-0"))
        failure = await failure_of(cluster, request())
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert "one dtype, KV dtype, block size and number of KV slices" in str(failure.details())
        # A prefill worker that computes like it makes a pair of its own.
        async with extra_worker(cluster, "prefill_worker", folder, "prefill-other", **settings):
            await until(lambda: is_state("prefill-other", "ready"))
            assert (await good_answer(client)).timings.prefill_worker == "prefill-other"
            decode.start()
            await cluster.wait_ready("decode-0")
            answers = await asyncio.gather(*(good_answer(client) for _ in range(MAX_QUEUE)))
            pairs = {(a.timings.prefill_worker, a.timings.decode_worker) for a in answers}
            assert pairs <= {("prefill-0", "decode-0"), ("prefill-other", "decode-other")}
            await assert_empty(cluster)
    await until(lambda: is_gone("decode-other"))
    await assert_empty(cluster)
