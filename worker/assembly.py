"""The parts of a worker that differ by role, and the engine under them, put together."""

import queue
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch

from engine.kv_pool import KvLayout, KvPool
from engine.loading import weights_fingerprint
from engine.model_folder import model_fingerprint
from engine.model_runner import BeforePass, ModelRunner
from engine.models.decoder import Decoder
from engine.row_tiles import NoCommonRowCount
from engine.runner import PipelinedRunner, Runner
from engine.tokenizer import Tokenizer
from kvtransfer.errors import DeviceFailed, ExportUnavailable
from kvtransfer.protocol import Transport
from kvtransfer.slices import WHOLE, PoolSlices
from runtime.clock import MonotonicClock
from runtime.core_sharing import CoreSharing, TooManyEngines, possible_shares
from runtime.cores import available_cores
from runtime.errors import StartupError
from runtime.logging import get_logger
from runtime.worker_config import WorkerConfig
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import PROTOCOL_VERSION, WorkerHello
from scheduling.worker_events import WorkerEvent
from worker.compatibility import compatibility_of, traits_of
from worker.core_sharing import Cores, OwnCores, SharedCores
from worker.engine_loading import (
    Engine,
    attention_of,
    engine_errors_in_one_line,
    load_engine,
    threads_of_rank,
)
from worker.engine_loop import Core, EngineLoop, KvSide, ReportSink
from worker.kv_room import room_of_rank
from worker.loading_log import LoadingLog
from worker.output_text import OutputText
from worker.passes_ahead import PassesAhead, PlansAhead
from worker.rank_group import RankGroup
from worker.rank_runner import GroupKv, GroupRunner
from worker.rank_transfer import RankPlace
from worker.transports import transports_of

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
    # What the pool holds of every block of the worker.
    slices: PoolSlices = WHOLE
    # Have the other ranks make their pools, and host memory for so many blocks; what of these
    # others may push into, rank 1 first.
    make_other_pools: Callable[[int], tuple[KvExport, ...]] = lambda _: ()

    @property
    def block_bytes(self) -> int:
        """Of one block in the pools of all ranks."""
        return self.layout.block_bytes * self.config.tensor_parallel_size

    @property
    def of_rank(self) -> RankPlace:
        """Of rank 0, which is this process."""
        return RankPlace(
            self.config,
            self.incarnation,
            self.layout,
            self.num_blocks,
            self.transports,
            self.slices,
        )


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
    # Its answers may wait for prompts that cannot.
    makes_room: bool = False
    # Told the blocks of every pass before it is ordered, where copies run beside passes.
    before_pass: BeforePass | None = None
    # The core, where passes of its plans are begun ahead.
    ahead: PlansAhead | None = None


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
    # Its other processes, where it has any.
    ranks: RankGroup | None = None
    # Core and runner of passes that are begun ahead; None: one after the other.
    _ahead: tuple[PlansAhead, PipelinedRunner] | None = None

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
            passes=None if self._ahead is None else partial(PassesAhead, *self._ahead),
        )


def assemble(
    config: WorkerConfig,
    incarnation: Incarnation,
    build_role: BuildRole,
    ranks: RankGroup | None = None,
) -> Worker:
    """Load the model and allocate the KV cache; takes seconds. Raises: StartupError.

    `ranks`: the worker's other processes, where it has any.
    """
    num_threads = threads_of_rank(config)
    torch.set_num_threads(num_threads)
    progress = LoadingLog(MonotonicClock())
    progress.phase("starting")
    exchange = None if ranks is None else ranks.begin(incarnation, num_threads)
    with nullcontext() if ranks is None else ranks.losses_end_the_start():
        engine = load_engine(config, exchange, progress)
    layout, attention = engine.layout, engine.attention
    progress.phase("reading the tokenizer")
    with engine_errors_in_one_line():
        tokenizer = Tokenizer.from_folder(config.model)
        weights = weights_fingerprint(engine.folder)
        fingerprint = model_fingerprint(config.model, engine.folder.config.rope_choice)
    progress.phase("making room for KV")
    num_blocks = _num_blocks(config, engine, ranks)
    inbox: Inbox = queue.SimpleQueue()
    workplace = Workplace(
        config,
        incarnation,
        layout,
        num_blocks,
        transports_of(config),
        inbox.put,
        engine.slices,
    )
    if ranks is not None:
        make = partial(ranks.make_pools, num_blocks)
        workplace = replace(workplace, make_other_pools=make)
    parts = _parts_of(build_role, workplace)
    runner = ModelRunner(
        engine.model, parts.pool, config.max_num_seqs, attention, parts.before_pass
    )
    hello = _hello(workplace, engine, runner, parts, (weights, fingerprint))
    _tell_ready(workplace, engine, hello)
    progress.phase("trying numbers of threads")
    worker = Worker(
        hello,
        config.model.name,
        parts,
        inbox,
        runner,
        tokenizer,
        num_threads,
        OwnCores() if ranks else _cores(config, runner, layout),
    )
    if ranks is None:
        return worker if parts.ahead is None else replace(worker, _ahead=(parts.ahead, runner))
    parts = _of_all_ranks(parts, ranks, inbox)
    return replace(worker, parts=parts, _runner=GroupRunner(runner, ranks), ranks=ranks)


def _of_all_ranks(parts: RoleParts, ranks: RankGroup, inbox: Inbox) -> RoleParts:
    kv = GroupKv(parts.kv, ranks)

    def prepare_peer(export: KvExport) -> None:
        parts.prepare_peer(export)
        kv.introduce(export)
        # The engine thread may wait for an event; it tells the other ranks when it wakes up.
        inbox.put(None)

    return replace(parts, kv=kv, prepare_peer=prepare_peer)


def _parts_of(build_role: BuildRole, place: Workplace) -> RoleParts:
    """Raises: StartupError."""
    try:
        return build_role(place)
    except ExportUnavailable as error:
        raise StartupError(f"{error}; or lower kv_cache_mib") from error
    except DeviceFailed as error:
        raise StartupError(str(error)) from error


def _hello(
    place: Workplace,
    engine: Engine,
    runner: ModelRunner,
    parts: RoleParts,
    fingerprints: tuple[str, str],
) -> WorkerHello:
    """What the worker says of itself; `fingerprints` of its weights and of its model."""
    config, (weights, fingerprint) = place.config, fingerprints
    traits = traits_of(config, engine.layout, weights, runner.arithmetic, engine.dtype)
    return WorkerHello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=WorkerId(config.worker_id),
        incarnation=place.incarnation,
        role=config.role,
        num_blocks=place.num_blocks + (parts.num_host_blocks or 0),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        compatibility=compatibility_of(traits),
        model_fingerprint=fingerprint,
        export=parts.export,
        max_message_bytes=config.max_message_bytes,
        num_growth_blocks=parts.num_growth_blocks,
        max_task_blocks=0 if parts.num_host_blocks is None else place.num_blocks,
        max_num_batched_tokens=config.max_num_batched_tokens,
        policy=config.policy_name,
        makes_room=parts.makes_room,
        num_ranks=config.tensor_parallel_size,
        traits=traits,
    )


def _tell_ready(place: Workplace, engine: Engine, hello: WorkerHello) -> None:
    log.info(
        "engine_ready",
        num_blocks=place.num_blocks,
        block_bytes=place.layout.block_bytes,
        dtype=engine.dtype,
        kv_dtype=place.layout.dtype,
        num_threads=torch.get_num_threads(),
        arithmetic=engine.arithmetic,
        compatibility=hello.compatibility,
    )


def _num_blocks(config: WorkerConfig, engine: Engine, ranks: RankGroup | None) -> int:
    """What every rank has room for. Raises: StartupError."""
    if ranks is None:
        return room_of_rank(config, engine)
    with ranks.losses_end_the_start():
        return ranks.agree_on_blocks(engine.arithmetic, room_of_rank(config, engine))


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
    if not isinstance(model, Decoder):
        return False
    try:
        again = Decoder(model.config, model.weights)
    except NoCommonRowCount:
        return False
    same_rows = (again.row_tiles, again.head_tiles) == (model.row_tiles, model.head_tiles)
    arithmetic = f"{again.arithmetic}-{attention_of(config, model, layout).arithmetic}"
    return same_rows and arithmetic == runner.arithmetic
