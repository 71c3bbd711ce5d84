"""The parts of a worker that differ by role, and the engine under them, put together."""

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.choice import AttentionShape, AttentionUnavailable, choose_attention
from engine.kv_pool import KvLayout, KvPool
from engine.loading import DeviceUnavailable, load_model, weights_fingerprint
from engine.model_folder import ModelFolder, model_fingerprint, open_model_folder
from engine.model_folder_errors import ModelFolderError
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.native.library import KernelsNotBuilt, KernelsNotLoaded
from engine.row_tiles import NoCommonRowCount
from engine.runner import Runner
from engine.tokenizer import Tokenizer
from kvtransfer import nixl, tcp
from kvtransfer.batches import PushSettings
from kvtransfer.errors import ExportUnavailable
from kvtransfer.nixl import NixlTransport
from kvtransfer.nixl_agent import require_nixl
from kvtransfer.protocol import Transport
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.zerocopy import ZeroCopy
from runtime.clock import MonotonicClock
from runtime.config import WorkerConfig
from runtime.core_sharing import CoreSharing, TooManyEngines, possible_shares
from runtime.cores import available_cores, resolve_num_threads
from runtime.errors import StartupError
from runtime.logging import get_logger
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import PROTOCOL_VERSION, WorkerHello
from scheduling.worker_events import WorkerEvent
from worker.core_sharing import Cores, OwnCores, SharedCores
from worker.engine_loop import Core, EngineLoop, KvSide, ReportSink
from worker.output_text import OutputText

log = get_logger()

Inbox = queue.SimpleQueue[WorkerEvent | None]


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a role needs to build its core and its side of the KV transfer."""

    config: WorkerConfig
    incarnation: Incarnation
    layout: KvLayout
    num_blocks: int
    transports: dict[str, Transport]
    # Hand an event to the engine thread, from any thread.
    post: Callable[[WorkerEvent], None]


def _push_to_nobody(export: KvExport) -> None:
    log.warning("peer_ignored", worker_id=export.worker_id, reason="this worker pushes no KV")


@dataclass(frozen=True, slots=True)
class RoleParts:
    """What a role contributes."""

    core: Core
    kv: KvSide
    pool: KvPool
    # Ends the KV transfer; waits at most the given seconds.
    close: Callable[[float], None]
    # The pool that others may push into, where the role has one.
    export: KvExport | None = None
    # Connect to a pool ahead of the first push; returns at once.
    prepare_peer: Callable[[KvExport], None] = _push_to_nobody
    # Blocks that only running answers may take, where the role has such.
    num_growth_blocks: int = 0
    # Of host memory, that count as room beside the pool; None where they do not.
    num_host_blocks: int | None = None


BuildRole = Callable[[Workplace], RoleParts]


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that is ready to run, and what it says of itself."""

    hello: WorkerHello
    model_name: str
    parts: RoleParts
    inbox: Inbox
    _runner: Runner
    _tokenizer: Tokenizer
    _num_threads: int
    _cores: Cores

    def engine_loop(self, sink: ReportSink) -> EngineLoop:
        """The engine thread over the parts, not started."""
        text = OutputText(self._tokenizer)
        return EngineLoop(
            self.parts.core,
            self._runner,
            text,
            self.parts.kv,
            self.inbox,
            sink,
            prepare_thread=partial(torch.set_num_threads, self._num_threads),
            cores=self._cores,
        )


@contextmanager
def engine_errors_in_one_line() -> Iterator[None]:
    """What the model or this machine refuses. Raises: StartupError."""
    try:
        yield
    except (
        ModelFolderError,
        DeviceUnavailable,
        AttentionUnavailable,
        KernelsNotBuilt,
        KernelsNotLoaded,
        NoCommonRowCount,
    ) as error:
        raise StartupError(str(error)) from error


def assemble(config: WorkerConfig, incarnation: Incarnation, build_role: BuildRole) -> Worker:
    """Load the model and allocate the KV cache; takes seconds. Raises: StartupError."""
    num_threads = resolve_num_threads(config.num_threads)
    torch.set_num_threads(num_threads)
    with engine_errors_in_one_line():
        folder = open_model_folder(config.model, config.max_model_len)
        dtype = _resolve_dtype(config, folder)
        # The kernels are for CPUs, FlashInfer is not.
        kernels = "torch" if config.attention == "flashinfer" else config.attention
        model = load_model(folder, dtype, config.device, kernels)
        tokenizer = Tokenizer.from_folder(config.model)
        weights = weights_fingerprint(folder)
        fingerprint = model_fingerprint(config.model, folder.config.rope_choice)
    if config.device != "cpu":
        raise StartupError(
            "KV transfer between GPU pools is not available yet; start the worker with --device cpu"
        )
    layout = _layout(folder, config.block_size, dtype)
    attention = _attention(config, model, layout)
    num_blocks = config.num_blocks or config.kv_cache_mib * 2**20 // layout.block_bytes
    if num_blocks < 1:
        raise StartupError(
            f"one KV block takes {layout.block_bytes} bytes, more than kv_cache_mib "
            f"{config.kv_cache_mib}; raise it, or lower block_size"
        )
    inbox: Inbox = queue.SimpleQueue()
    workplace = Workplace(
        config, incarnation, layout, num_blocks, transports_of(config), post=inbox.put
    )
    try:
        parts = build_role(workplace)
    except ExportUnavailable as error:
        raise StartupError(f"{error}; or lower kv_cache_mib") from error
    runner = ModelRunner(model, parts.pool, config.max_num_seqs, attention)
    hello = WorkerHello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=WorkerId(config.worker_id),
        incarnation=incarnation,
        role=config.role,
        num_blocks=num_blocks + (parts.num_host_blocks or 0),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        compatibility=_compatibility(weights, layout, runner.arithmetic),
        model_fingerprint=fingerprint,
        export=parts.export,
        max_message_bytes=config.max_message_bytes,
        num_growth_blocks=parts.num_growth_blocks,
        max_task_blocks=0 if parts.num_host_blocks is None else num_blocks,
        max_num_batched_tokens=config.max_num_batched_tokens,
        policy=config.policy_name,
    )
    log.info(
        "engine_ready",
        num_blocks=num_blocks,
        block_bytes=layout.block_bytes,
        dtype=dtype,
        num_threads=num_threads,
        arithmetic=runner.arithmetic,
        compatibility=hello.compatibility,
    )
    cores = _cores(config, runner, layout)
    return Worker(hello, config.model.name, parts, inbox, runner, tokenizer, num_threads, cores)


def _resolve_dtype(config: WorkerConfig, folder: ModelFolder) -> str:
    if config.dtype != "auto":
        return config.dtype
    # float16 has no fast path on a CPU; its values fit float32 exactly.
    return "bfloat16" if folder.config.torch_dtype == "bfloat16" else "float32"


def _layout(folder: ModelFolder, block_size: int, dtype: str) -> KvLayout:
    model = folder.config
    return KvLayout(model.num_layers, model.num_kv_heads, model.head_dim, block_size, dtype)


def _attention(config: WorkerConfig, model: Decoder, layout: KvLayout) -> AttentionBackend:
    shape = model.config
    wanted = AttentionShape(layout, shape.num_heads, shape.layer_attention, model.device)
    with engine_errors_in_one_line():
        return choose_attention(wanted, config.attention)


def _cores(config: WorkerConfig, runner: ModelRunner, layout: KvLayout) -> Cores:
    """Shared with other engines of the machine where the setting asks for it."""
    num_cores = available_cores()
    if config.shared_cores is None or num_cores == 1 or config.device != "cpu":
        return OwnCores()
    before = torch.get_num_threads()
    try:
        is_same = all(
            _computes_the_same(config, runner, layout, num_threads)
            for num_threads in possible_shares(num_cores)
        )
    finally:
        torch.set_num_threads(before)
    if not is_same:
        log.warning("cores_not_shared", reason="results would depend on the number of threads")
        return OwnCores()
    try:
        sharing = CoreSharing(config.shared_cores, num_cores)
    except (OSError, TooManyEngines) as error:
        raise StartupError(f"shared_cores {config.shared_cores}: {error}") from error
    return SharedCores(sharing, MonotonicClock())


def _computes_the_same(
    config: WorkerConfig, runner: ModelRunner, layout: KvLayout, num_threads: int
) -> bool:
    """Whether so many threads give the runner's bits at the runner's own row counts."""
    torch.set_num_threads(num_threads)
    model = runner.model
    try:
        again = Decoder(model.config, model.weights)
    except NoCommonRowCount:
        return False
    same_rows = (again.row_tiles, again.head_tiles) == (model.row_tiles, model.head_tiles)
    arithmetic = f"{again.arithmetic}-{_attention(config, model, layout).arithmetic}"
    return same_rows and arithmetic == runner.arithmetic


def _compatibility(weights: str, layout: KvLayout, arithmetic: str) -> str:
    # Arithmetic is part of it: a sequence that moves must go on with the very same bits.
    # Elementwise kernels round as the build of torch and the processor have them.
    build = (torch.__version__, torch.backends.cpu.get_cpu_capability())
    facts: Sequence[object] = (PROTOCOL_VERSION, weights, layout, arithmetic, build)
    return blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def transports_of(config: WorkerConfig) -> dict[str, Transport]:
    """By name, in the order of the settings. Raises: StartupError."""
    settings = PushSettings(
        checksum_fraction=config.kv_checksum_fraction,
        zerocopy=ZeroCopy.NEVER if config.kv_tcp_zerocopy == "never" else ZeroCopy.AUTO,
    )
    door = DoorSettings(
        host=config.kv_host or config.host,
        port=config.kv_port,
        advertise_host=config.reachable_kv_host,
    )
    # Each has a port of its own.
    next_door = replace(door, port=door.port + 1) if door.port else door
    known: dict[str, Transport] = {
        SharedMemoryTransport.name: SharedMemoryTransport(
            settings=settings, cluster=config.cluster_name
        ),
        tcp.NAME: TcpTransport(door, settings),
        nixl.NAME: NixlTransport(next_door, settings),
    }
    for name in config.transports:
        if name not in known:
            raise StartupError(f"transport {name!r} is unknown; use one of {', '.join(known)}")
    if nixl.NAME in config.transports:
        try:
            require_nixl()
        except ExportUnavailable as error:
            raise StartupError(str(error)) from error
    return {name: known[name] for name in config.transports}
