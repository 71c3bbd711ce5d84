"""What the simulator is told of this machine, from the passes and messages of one load."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.live_run.cluster import (
    BLOCK_SIZE,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    NUM_BLOCKS,
)
from benchmarks.live_run.recorded import LoggedPass, RecordedRun, link_s, measured
from scheduling.batch_time import BatchTime
from scheduling.batch_time_fit import FitError, MeasuredBatch, fit_error
from simulator.hardware.alternatives import fit_chosen
from simulator.hardware.description import BatchTimePart, Hardware, load_hardware

_KINDS = ("prompt", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the simulator is told of this machine."""

    hardware: Hardware
    link_s: float
    ledger_s: float
    # Of the model against the passes that it was fitted to, by kind.
    errors: Mapping[str, FitError]


def fit(
    recorded: RecordedRun,
    load: str,
    passes: Mapping[str, Sequence[LoggedPass]],
    kv_bytes_per_token: int,
) -> Fitted:
    """From what happened under that load only."""
    spans = recorded.spans(load)
    rows = [row for each in passes.values() for row in measured(each, spans)]
    model = unbiased_fit(rows)
    kinds = {kind: [row for row in rows if _kind(row) == kind] for kind in _KINDS}
    measured_on = recorded.within(spans)
    cpu = load_hardware("cpu")
    # Prompts here are so small that what they take to send is all latency.
    push_s = [took for _, took in measured_on.push_s] or [cpu.transfer.latency_s]
    transfer = cpu.transfer.model_copy(update={"latency_s": statistics.fmean(push_s)})
    hardware = cpu.model_copy(
        update={
            "name": "this machine",
            "batch_time": BatchTimePart.of(model),
            "transfer": transfer,
            "kv": cpu.kv.model_copy(
                update={
                    "capacity_tokens": NUM_BLOCKS * BLOCK_SIZE,
                    "bytes_per_token": kv_bytes_per_token,
                    "block_size": BLOCK_SIZE,
                }
            ),
            "limits": cpu.limits.model_copy(
                update={
                    "max_num_seqs": MAX_NUM_SEQS,
                    "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
                }
            ),
        }
    )
    return Fitted(
        hardware,
        link_s(measured_on, passes),
        statistics.fmean(took for _, took in measured_on.ledger_s),
        {kind: fit_error(model, of_kind) for kind, of_kind in kinds.items() if of_kind},
    )


def _kind(row: MeasuredBatch) -> str:
    if not row.shape.num_decode:
        return "prompt"
    return "mixed" if row.shape.num_prompt_tokens else "decode"


def unbiased_fit(rows: Sequence[MeasuredBatch]) -> BatchTime:
    """The mean of passes, kind by kind: least relative errors alone would believe the quick ones,
    and what is compared in the end are means."""
    counts = {kind: sum(_kind(row) == kind for row in rows) for kind in _KINDS}
    # A few passes of a kind that hardly occurs are not to outweigh all others.
    weights = {kind: 1 / max(count, len(rows) / 20) for kind, count in counts.items()}
    balanced = [replace(row, weight=weights[_kind(row)]) for row in rows]
    model = fit_chosen(balanced)
    for _ in range(3):
        # Errors relative to what is expected, not to what was measured.
        model = fit_chosen(
            [
                replace(row, weight=row.weight * (row.seconds / model.seconds(row.shape)) ** 2)
                for row in balanced
            ]
        )
    return model
