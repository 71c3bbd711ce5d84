"""vLLM's CPU build: one server on both cores, or a prefill and a decode server behind its router.

Versions and the steps that install them: benchmarks/end_to_end/README.md. As it comes, the pair
computes on one core: its connector moves both main threads to the machine's last core, and a
thread of each spins. `put_threads_right` gives each engine a core of its own again.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.end_to_end.http_client import http_stream
from benchmarks.end_to_end.measure import Stream

_NAME = "m"
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.25
_PREFILL_PORT, _DECODE_PORT, _ROUTER_PORT, _SINGLE_PORT = 17801, 17802, 17810, 17800
# A thread that has used more than this while the server was idle spins.
_SPINNING_S = 1.0


@dataclass(frozen=True, slots=True)
class VllmSetup:
    """Where vLLM lies and what it serves."""

    engine_env: Path
    router_env: Path | None
    model: Path
    dtype: str
    log_folder: Path
    max_num_seqs: int


@asynccontextmanager
async def single(setup: VllmSetup, cores: str = "0-1") -> AsyncIterator[Stream]:
    """One server on the given cores."""
    async with _engine(setup, "single", _SINGLE_PORT, cores):
        yield http_stream(_SINGLE_PORT, _NAME)


@asynccontextmanager
async def pair(setup: VllmSetup, *, put_threads_right: bool) -> AsyncIterator[Stream]:
    """A prefill server on core 0, a decode server on core 1, KV over NIXL."""
    if setup.router_env is None:
        raise SystemExit("the pair needs vllm-router; give --router-env")
    async with AsyncExitStack() as stack:
        prefill, decode = await asyncio.gather(
            stack.enter_async_context(_engine(setup, "prefill", _PREFILL_PORT, "0")),
            stack.enter_async_context(_engine(setup, "decode", _DECODE_PORT, "1")),
        )
        await stack.enter_async_context(_router(setup))
        if put_threads_right:
            await _put_threads_right({prefill: 0, decode: 1})
        yield http_stream(_ROUTER_PORT, _NAME)


@asynccontextmanager
async def _engine(setup: VllmSetup, role: str, port: int, cores: str) -> AsyncIterator[int]:
    command = [
        *(["taskset", "-c", cores] if role != "single" else []),
        str(setup.engine_env / "bin/vllm"),
        *("serve", str(setup.model), "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", "1024", "--dtype", setup.dtype, "--enforce-eager"),
        *("--max-num-seqs", str(setup.max_num_seqs), "--served-model-name", _NAME),
    ]
    if role != "single":
        kv_role = "kv_producer" if role == "prefill" else "kv_consumer"
        command += [
            "--kv-transfer-config",
            f'{{"kv_connector":"NixlConnector","kv_role":"{kv_role}","kv_buffer_device":"cpu"}}',
        ]
    environ = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "UCX_NET_DEVICES": "lo",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port - 2200),
        "VLLM_CPU_OMP_THREADS_BIND": cores,
    }
    log = setup.log_folder / f"vllm-{role}.log"
    async with server_process(command, environ, log) as process_id:
        await _wait_healthy(port, log, process_id)
        yield process_id


@asynccontextmanager
async def _router(setup: VllmSetup) -> AsyncIterator[None]:
    assert setup.router_env is not None
    command = [
        str(setup.router_env / "bin/vllm-router"),
        *("--host", "127.0.0.1", "--port", str(_ROUTER_PORT)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(_ROUTER_PORT + 1)),
        *("--vllm-pd-disaggregation", "--kv-connector", "nixl"),
        *("--prefill", f"http://127.0.0.1:{_PREFILL_PORT}"),
        *("--decode", f"http://127.0.0.1:{_DECODE_PORT}"),
        *("--policy", "round_robin", "--log-level", "error"),
    ]
    log = setup.log_folder / "vllm-router.log"
    async with server_process(command, {}, log) as process_id:
        await _wait_healthy(_ROUTER_PORT, log, process_id)
        yield


@asynccontextmanager
async def server_process(
    command: list[str], environ: Mapping[str, str], log: Path
) -> AsyncIterator[int]:
    """A process and all its children, ended in the end whatever happens."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **environ},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):  # it is killed next
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
                # Its children end after it, and unlink their shared memory then.
                await _wait_empty(process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(group, number)


async def _wait_empty(group: int) -> None:
    while True:
        if not _has_members(group):
            return
        await asyncio.sleep(_POLL_S)


def _has_members(group: int) -> bool:
    """Whether a process of a group still runs; one that nobody has waited for does not."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it ended meanwhile
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


async def _wait_healthy(port: int, log: Path, process_id: int) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not await _is_healthy(port):
            if not psutil.pid_exists(process_id):
                raise SystemExit(f"the server did not start; see {log}")
            await asyncio.sleep(_POLL_S)


async def _is_healthy(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(2.0):
            return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


async def _put_threads_right(core_by_server: Mapping[int, int]) -> None:
    """Put each engine's main thread on its core, and let its spinning threads run last."""
    workers = {
        worker.pid: core
        for server, core in core_by_server.items()
        for worker in psutil.Process(server).children(recursive=True)
        if "Worker" in worker.name() or "EngineCore" in worker.name()
    }
    if not workers:
        raise SystemExit("no engine process of vLLM found; its process names have changed")
    before = {pid: _thread_seconds(pid) for pid in workers}
    await asyncio.sleep(2 * _SPINNING_S)  # idle: only what spins uses the processor
    for pid, core in workers.items():
        os.sched_setaffinity(pid, {core})
        for thread, seconds in _thread_seconds(pid).items():
            if thread != pid and seconds - before[pid].get(thread, 0.0) > _SPINNING_S / 2:
                os.setpriority(os.PRIO_PROCESS, thread, 19)


def _thread_seconds(pid: int) -> dict[int, float]:
    return {t.id: t.user_time + t.system_time for t in psutil.Process(pid).threads()}
