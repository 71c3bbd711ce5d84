"""Operators take requests and workers out of a running cluster; nobody else loses a token."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.port import reserve_port
from deploy.local.settings import ROOT
from deploy.local.testing import Saboteur
from tandemserve import (
    AsyncClient,
    AsyncStream,
    Completion,
    LastWorker,
    RequestCancelled,
    RequestFilter,
    UnknownName,
    WorkerView,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
# Where this process is held up until an answer is over, an operator finds the next one.
MAX_TRIES = 10
PREFILL, DECODE = ("prefill-0", "prefill-1"), ("decode-0", "decode-1")
PROMPT = [5 + i % 300 for i in range(40)]
NUM_OUTPUT = 300
LONG: dict[str, Any] = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "temperature": 0.9}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"], num_prefill=2, decode={"num_blocks": "256"}
    ) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def all_open_again(cluster: LocalCluster) -> AsyncIterator[None]:
    """No test leaves a cordon to the next."""
    yield
    async with cluster.client() as client:
        for view in await client.admin.workers():
            await client.admin.uncordon(view.worker_id)


async def tandem(cluster: LocalCluster, *arguments: str) -> tuple[int, str, str]:
    """`tandem admin ARGUMENTS` as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandemserve.cli.main", "admin", *arguments),
        *("--target", cluster.endpoint),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def begun(client: AsyncClient, *seeds: int) -> list[AsyncStream]:
    """Answers that have their first token."""
    streams = [client.stream(PROMPT, seed=seed, **LONG) for seed in seeds]
    for stream in streams:
        await anext(stream)
    return streams


async def view_of(client: AsyncClient, worker_id: str) -> WorkerView:
    return {view.worker_id: view for view in await client.admin.workers()}[worker_id]


def token_ids(answers: list[Completion]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


async def stopped_while_decoding(
    client: AsyncClient, saboteur: Saboteur, until: Until
) -> tuple[str, AsyncStream]:
    """A request that cannot end by itself, and its id: its decode workers stand still."""
    for number in range(MAX_TRIES):
        request_id = f"runaway-{number}-job"
        stream = client.stream(PROMPT, request_id=request_id, n=16, **LONG)
        await anext(stream)

        async def is_listed(request_id: str = request_id) -> bool:
            listed = await client.admin.requests(RequestFilter(state="running", phase="decoding"))
            return [view.request_id for view in listed.requests] == [request_id]

        async def is_listed_or_over(request_id: str = request_id) -> bool:
            history = await client.admin.request(request_id)
            return history.request.state != "running" or await is_listed()

        await until(is_listed_or_over)
        saboteur.freeze(*DECODE)
        if await is_listed():
            return request_id, stream
        saboteur.thaw_all()
    raise AssertionError("every request was over before it could be stopped")


async def test_operators_see_how_well_passes_and_lengths_are_foretold(
    cluster: LocalCluster, until: Until
) -> None:
    async with cluster.client() as client:
        before = (await client.admin.status()).length_calibration
        num_before = before[0].num_answers if before else 0
        # One pass in four is timed, and a prompt is one pass.
        for seed in range(16):
            await client.generate(PROMPT, seed=seed, tenant="acme", max_tokens=24, ignore_eos=True)

        async def both_roles_have_timed_passes() -> bool:
            views = await client.admin.workers()
            return {view.role for view in views if view.num_timed_passes} == {"prefill", "decode"}

        await until(both_roles_have_timed_passes)
        code, out, _ = await tandem(cluster, "workers", "--json")
        assert code == 0
        for view in json.loads(out):
            assert 0 <= view["pass_error_median"] <= view["pass_error_p90"]
        code, out, _ = await tandem(cluster, "status", "--json")
        assert code == 0
        in_all, *by_tenant = json.loads(out)["length_calibration"]
        assert in_all["num_answers"] == num_before + 16
        (acme,) = (each for each in by_tenant if each["tenant"] == "acme")
        assert acme["num_answers"] == 16
        assert 0 <= acme["covered_share"] <= 1


async def test_a_request_ends_on_both_workers_and_its_caller_is_told_who_did_it(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    saboteur = Saboteur(cluster)
    async with cluster.client() as client:
        request_id, stream = await stopped_while_decoding(client, saboteur, until)
        try:
            beginning = request_id.removesuffix("-job")
            code, out, err = await tandem(
                cluster, "cancel", beginning, "--reason", "too long", "--as", "eve"
            )
        finally:
            saboteur.thaw_all()
        assert (code, out, err) == (0, f"{request_id} cancelled\n", "")
        with pytest.raises(RequestCancelled, match=r"by an operator \(eve\): too long; ask the"):
            await stream.completion()
        await assert_empty(cluster)
        history = await client.admin.request(beginning)
        assert (history.request.state, history.request.error_code) == ("cancelled", "cancelled")
        # Some answers may have come to their end before the workers were stopped.
        ends = {timeline.events[-1].change for timeline in history.timelines}
        assert "operator_cancelled" in ends <= {"operator_cancelled", "sequence_ended"}
        (outcome,) = await client.admin.cancel(request_id)
        assert (outcome.cancelled, outcome.state) == (False, "cancelled")


async def test_a_wrong_id_is_refused_with_a_hint_and_nothing_ends(cluster: LocalCluster) -> None:
    async with cluster.client() as client:
        stream = client.stream(PROMPT, request_id="job-7", **LONG)
        await anext(stream)
        with pytest.raises(UnknownName, match="did you mean 'job-7'"):
            await client.admin.cancel("job-7", "jab-7")
        code, out, err = await tandem(cluster, "drain", "decode-9")
        assert (code, out) == (1, "")
        assert err.startswith("error [unknown_name]: worker_id: no worker 'decode-9' is known")
        code, _, err = await tandem(cluster, "cordon", "decode")
        assert code == 1
        assert "is the beginning of 2 workers (decode-0, decode-1)" in err
        assert len((await stream.completion()).token_ids) == NUM_OUTPUT


async def test_running_answers_move_off_a_worker_and_go_on_with_the_very_next_token(
    cluster: LocalCluster, assert_empty: AssertEmpty
) -> None:
    seeds = range(8)
    async with cluster.client() as client:
        expected = [await client.generate(PROMPT, seed=seed, **LONG) for seed in seeds]
        for _ in range(MAX_TRIES):
            streams = await begun(client, *seeds)
            await client.admin.evacuate("decode-1")
            code, out, err = await tandem(cluster, "drain", "decode-1", "--migrate", "--json")
            assert (code, json.loads(out)) == (0, {"worker_id": "decode-1", "empty": True}), err
            answers = [await stream.completion() for stream in streams]
            assert token_ids(answers) == token_ids(expected)
            moved = [answer for answer in answers if answer.timings.num_migrations]
            assert {answer.timings.decode_worker for answer in moved} <= {"decode-0"}
            if moved:
                break
            await client.admin.uncordon("decode-1")
        assert moved
        assert (await view_of(client, "decode-1")).admission == "cordoned"
    await assert_empty(cluster)


async def test_prompts_and_parked_kv_move_off_a_prefill_worker(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    seeds, saboteur = range(40), Saboteur(cluster)
    async with cluster.client() as client:
        await client.admin.cordon("prefill-1")
        try:
            # Nobody grants room meanwhile: all that was computed waits with parked KV.
            saboteur.freeze(*DECODE)
            calls = [
                asyncio.create_task(client.generate(PROMPT * 4, seed=seed, **LONG))
                for seed in seeds
            ]

            async def some_are_parked() -> bool:
                return (await client.admin.status()).num_generation_queued > 0

            async def is_empty() -> bool:
                return (await view_of(client, "prefill-0")).num_tasks == 0

            await until(some_are_parked)
            await client.admin.uncordon("prefill-1")
            await client.admin.evacuate("prefill-0")
            await until(is_empty)
        finally:
            saboteur.thaw_all()
        answers = await asyncio.gather(*calls)
        assert any(answer.timings.num_migrations for answer in answers)
        await client.admin.uncordon("prefill-0")
        again = await client.generate(PROMPT * 4, seed=7, **LONG)
        assert again.token_ids == answers[7].token_ids
    await assert_empty(cluster)


async def test_a_drain_waits_for_what_runs_and_gives_up_in_time(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    saboteur = Saboteur(cluster)
    async with cluster.client() as client:

        async def is_busy() -> bool:
            return (await view_of(client, "decode-0")).num_tasks > 0

        await client.admin.cordon("decode-1")
        try:
            # Nothing ends on the decode worker: it has room for answers whose KV does not come.
            saboteur.freeze(*PREFILL)
            calls = [
                asyncio.create_task(client.generate(PROMPT, seed=seed, **LONG)) for seed in range(6)
            ]
            await until(is_busy)
            await client.admin.uncordon("decode-1")
            code, out, err = await tandem(cluster, "drain", "decode-0", "--drain-timeout", "0")
        finally:
            saboteur.thaw_all()
        assert (code, out) == (1, "")
        assert "and stays cordoned; wait longer, add --migrate" in err
        drain = asyncio.create_task(tandem(cluster, "drain", "decode-0"))
        answers = await asyncio.gather(*calls)
        assert not any(answer.timings.num_migrations for answer in answers)
        assert "decode-0" in {answer.timings.decode_worker for answer in answers}
        code, out, err = await drain
        assert (code, out) == (
            0,
            "decode-0 is empty; stop it, or `tandem admin uncordon decode-0`\n",
        ), err
        fresh = await client.generate(PROMPT, max_tokens=3)
        assert fresh.timings.decode_worker == "decode-1"
    await assert_empty(cluster)


async def test_the_last_worker_of_its_kind_is_closed_only_by_force(cluster: LocalCluster) -> None:
    async with cluster.client() as client:
        await client.admin.cordon("decode-0")
        with pytest.raises(LastWorker, match="or insist with --force"):
            await client.admin.evacuate("decode-1")
        code, _, err = await tandem(cluster, "drain", "decode-1")
        assert (code, err.startswith("error [last_worker]: decode-1 is the last open")) == (1, True)
        assert (await client.admin.cordon("decode-1", force=True)).admission == "cordoned"
        for worker in ("decode-0", "decode-1"):
            assert (await client.admin.uncordon(worker)).admission == "open"
        assert (await client.generate(PROMPT, max_tokens=3)).token_ids


async def test_every_router_honours_a_cordon_also_one_that_connects_later(
    cluster: LocalCluster, model_folders: dict[str, Path], until: Until
) -> None:
    async with (
        second_router(cluster, model_folders["llama"]) as early,
        AsyncClient(early) as other,
        cluster.client() as client,
    ):

        async def all_ready() -> bool:
            views = await other.admin.workers()
            return [view.state for view in views] == ["ready"] * 4

        await until(all_ready)
        await client.admin.cordon("decode-0")

        async def is_known() -> bool:
            return (await view_of(other, "decode-0")).admission == "cordoned"

        await until(is_known)
        for one in (client, other):
            answers = [await one.generate(PROMPT, max_tokens=3) for _ in range(4)]
            assert {answer.timings.decode_worker for answer in answers} == {"decode-1"}
    # The router that was told dies and comes back; the worker remembers.
    router = cluster.process("router-0")
    os.kill(router.pid, signal.SIGKILL)
    assert await router.wait_ended(PATIENCE_S)
    router.start()
    async with cluster.client() as client:

        async def is_back() -> bool:
            views = await cluster.workers()
            return [view.state for view in views] == ["ready"] * 4

        await until(is_back)
        assert (await view_of(client, "decode-0")).admission == "cordoned"
        answers = [await client.generate(PROMPT, max_tokens=3) for _ in range(4)]
        assert {answer.timings.decode_worker for answer in answers} == {"decode-1"}


@asynccontextmanager
async def second_router(cluster: LocalCluster, model: Path) -> AsyncIterator[str]:
    """Another replica; yields its address."""
    port = reserve_port("127.0.0.1", 0)
    flags = {"router-id": "router-1", "port": str(port.port), "model": str(model)}
    flags |= {"redis-url": cluster.redis.url}
    command = (sys.executable, "-P", "-m", "router", *(f"--{k}={v}" for k, v in flags.items()))
    log = cluster.log_folder / "router-1-extra.log"
    environ = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    child = ChildProcess("router-1", command, environ, log)
    child.start()
    try:
        yield f"127.0.0.1:{port.port}"
        child.terminate()
        assert await child.wait_ended(PATIENCE_S)
        assert child.ended_well, log.read_text("utf-8")
    finally:
        child.kill()
        port.release()
