"""Decode steps as the engine thread takes them: with core, text and reports between passes.

Beside bare steps they show what the device waits for the host: one pass after the other, and with
the next one planned and begun while one runs (docs/decisions/plan-ahead.md).
"""

import queue
import statistics
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.decode_step import BLOCK_SIZE
from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.settings import DecodeSettings
from decode_worker.turn_taking import new_core
from engine.model_runner import ModelRunner
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import byte_level_backend, write_tokenizer
from scheduling.block_pool import num_blocks_for
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    SequenceSpec,
    StartDecode,
    TaskReleased,
    TokensEmitted,
    WorkerLoad,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CommandArrived,
    KvAction,
    KvArrived,
    SendReport,
    SessionId,
    WorkerEvent,
)
from worker.engine_loop import EngineLoop
from worker.output_text import OutputText
from worker.passes_ahead import PassesAhead

ORDERINGS = {"one after the other": False, "planned ahead": True}
_SESSION = SessionId(1)
_EXPORT = KvExport("none", "", 0, 0, WorkerId("decode-0"), Incarnation(1), "")
# Until all sequences are there and nothing is done for the first time any more.
_WARM_UPS = 4
# Beside the steps that count, each sequence computes so many.
MORE_TOKENS = _WARM_UPS + 2
_PATIENCE_S = 120.0


class _NoKv:
    """What lies in the pool is as good as any KV."""

    is_polling = False

    def perform(self, action: KvAction) -> None:
        """Nothing is moved."""

    def poll(self) -> list[WorkerEvent]:
        return []


class _Frames:
    """When each iteration in which all sequences got a token was told."""

    def __init__(self, num_seqs: int) -> None:
        self.at_s: list[float] = []
        self.is_over = threading.Event()
        self._num_seqs = num_seqs
        self._num_released = 0

    def __call__(self, reports: list[SendReport], load: WorkerLoad) -> None:
        kinds = [type(sent.report) for sent in reports]
        if kinds.count(TokensEmitted) == self._num_seqs:
            self.at_s.append(time.perf_counter())
        self._num_released += kinds.count(TaskReleased)
        if self._num_released == self._num_seqs:
            self.is_over.set()


def loop_step_s(
    runner: ModelRunner, batch: int, context: int, num_steps: int, *, plans_ahead: bool
) -> float:
    """The median time from one told iteration to the next, in seconds.

    Raises: TimeoutError when the engine thread does not come to an end.
    """
    max_tokens = num_steps + MORE_TOKENS
    num_blocks = num_blocks_for(context + max_tokens, BLOCK_SIZE)
    settings = DecodeSettings(
        batch * num_blocks, BLOCK_SIZE, batch, prefix_caching=False, plans_ahead=plans_ahead
    )
    core, frames = new_core(settings, _EXPORT), _Frames(batch)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), byte_level_backend())
        text = OutputText(Tokenizer.from_folder(Path(folder)))
    passes = partial(PassesAhead, core, runner) if isinstance(core, PlanningAheadCore) else None
    loop = EngineLoop(core, runner, text, _NoKv(), queue.SimpleQueue(), frames, passes=passes)
    for number in range(batch):
        name = TaskId(f"{number}/0")
        prompt = tuple(3 + (7 * number + i) % 300 for i in range(context))
        spec = SequenceSpec(prompt, (), SamplingParams(temperature=0.0), StopParams(max_tokens))
        num_kv_blocks = num_blocks_for(context, BLOCK_SIZE)
        admitted = AdmitGeneration(name, spec, num_blocks, num_kv_blocks, f"{name}@d")
        loop.post(CommandArrived(_SESSION, admitted))
        loop.post(CommandArrived(_SESSION, StartDecode(name, (3,))))
        loop.post(KvArrived(name))
    loop.start()
    is_over = frames.is_over.wait(_PATIENCE_S)
    loop.stop(_PATIENCE_S)
    if not is_over:
        raise TimeoutError(f"{len(frames.at_s)} steps in {_PATIENCE_S} s; {loop.failure!r}")
    return statistics.median(b - a for a, b in pairwise(frames.at_s[_WARM_UPS:]))
