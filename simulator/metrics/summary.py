"""A run as the JSON object that reports, comparisons and other programs read.

Over the requests that arrive after the warm-up, which is 0 unless asked for:

- duration: from the first arrival (or the end of the warm-up) to the last end, so that what is left
  over when arrivals stop is paid for;
- `offered_rps`: requests over the time in which they arrive; null where all arrive at once;
- `throughput_rps`: requests that finished, over the duration;
- `goodput_rps`: requests that finished and met all their goals, over the same duration;
- `slo_attainment`: the share of all requests that did so; failed, cancelled and unfinished ones
  are among those that did not;
- `ttft_ms`, `jct_s`: one value a request; `tpot_ms`: the mean gap of each request with two tokens
  or more; `tbt_ms`: every gap of every request. All over finished requests. Percentiles are linear
  between ranks (`quantiles.quantile`); `quantile_error` bounds their relative error, 0 while all
  values are kept. Means and maxima are always exact;
- `kvc_allocated_share`, `kvc_written_share`: blocks that a sequence owns, and the part of them that
  holds KV, over all blocks of all workers, in the mean over time;
- `preemptions`, `swaps`: how often a sequence lost its place; those of one that kept its KV in
  host memory count in both;
- `length_prediction`: what was predicted at arrival against what came, over the latest answers, as
  `scheduling/length_calibration.py` defines it;
- `pass_time_error`: |predicted - taken| / taken of the model that workers fit to their passes, over
  the latest ones; of the worker of a role that is furthest off, null where no worker has a model.

No figure depends on how long the simulation itself took. Numbers have six significant digits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from scheduling.batch_time_online import PassTimeError
from scheduling.length_calibration import Calibration
from simulator.metrics.distribution import Distribution
from simulator.metrics.quantiles import Figures
from simulator.metrics.role_tally import RoleTally
from simulator.metrics.run_record import Attainment, RunRecord
from tandemserve.version import VERSION

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was asked of the run. Texts are as users wrote them, or as they were understood."""

    policy: str
    trace: str
    cluster: str
    hardware: str
    seed: int
    slo: str
    # Where the goals were published; "" where they were given.
    slo_source: str = ""
    # Where every request has the same goal; for plots.
    ttft_goal_s: float | None = None
    token_goal_s: float | None = None
    model: str = ""
    # Arrivals came so many times faster than in the trace.
    rate_scale: float = 1.0
    # Whatever else a reader needs to repeat the run.
    settings: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run: what was asked, what happened."""

    facts: RunFacts
    record: RunRecord

    @property
    def offered_rps(self) -> float | None:
        """See `summary`."""
        tally = self.record.requests
        if tally.first_arrival_s is None:
            return None
        begin_s = self.record.measured_from_s or tally.first_arrival_s
        span_s = tally.last_arrival_s - begin_s
        return tally.all.num_requests / span_s if span_s > 0 else None

    @property
    def goodput_rps(self) -> float:
        """See `summary`."""
        return _rate(self.record.requests.all.num_attained, self.record.duration_s)

    @property
    def throughput_rps(self) -> float:
        """See `summary`."""
        return _rate(self.record.requests.all.num_finished, self.record.duration_s)

    @property
    def slo_attainment(self) -> float:
        """See `summary`."""
        attainment = self.record.requests.all
        return attainment.share(attainment.num_attained)


def summary(result: RunResult) -> dict[str, Json]:
    """The JSON object of a run; the same run gives the same object, in the same order."""
    facts, record = result.facts, result.record
    tally, duration_s = record.requests, record.duration_s
    attainment = tally.all
    num_ended = attainment.num_finished + tally.num_failed + tally.num_cancelled
    return {
        "policy": facts.policy,
        "trace": facts.trace,
        "cluster": facts.cluster,
        "hardware": facts.hardware,
        "model": facts.model,
        "gpus": record.num_gpus,
        "seed": facts.seed,
        "rate_scale": rounded(facts.rate_scale),
        "slo": facts.slo,
        "slo_source": facts.slo_source,
        "settings": facts.settings,
        "version": VERSION,
        "requests": attainment.num_requests,
        "finished": attainment.num_finished,
        "failed": tally.num_failed,
        "cancelled": tally.num_cancelled,
        "unfinished": attainment.num_requests - num_ended,
        "warmup_s": rounded(record.measured_from_s),
        "duration_s": rounded(duration_s),
        "offered_rps": None if result.offered_rps is None else rounded(result.offered_rps),
        "throughput_rps": rounded(result.throughput_rps),
        "goodput_rps": rounded(result.goodput_rps),
        **_attained(attainment),
        "prompt_tokens_per_s": rounded(_rate(tally.num_prompt_tokens, duration_s)),
        "output_tokens_per_s": rounded(_rate(tally.num_output_tokens, duration_s)),
        "cached_prompt_share": rounded(_rate(tally.num_cached_tokens, tally.num_prompt_tokens)),
        "ttft_ms": _figures(tally.ttft, 1000),
        "tbt_ms": _figures(tally.tbt, 1000),
        "tpot_ms": _figures(tally.tpot, 1000),
        "jct_s": _figures(tally.jct, 1),
        "quantile_error": _errors(record),
        "phases_s": {
            phase: rounded(_rate(seconds, attainment.num_finished))
            for phase, seconds in sorted(tally.seconds_by_phase.items())
        },
        "preemptions": tally.num_preemptions,
        "swaps": tally.num_swaps,
        "length_prediction": _length_prediction(record.length_calibration),
        "kvc_allocated_share": _share_of_blocks(record.roles, lambda role: role.allocated_block_s),
        "kvc_written_share": _share_of_blocks(record.roles, lambda role: role.written_block_s),
        "classes": {
            name: {"requests": one.num_requests, **_attained(one)}
            for name, one in sorted(tally.by_class.items())
        },
        "roles": {
            role.role: _role(role, record.pass_time_error_by_role.get(role.role))
            for role in record.roles
        },
    }


def rounded(value: float) -> float:
    """Six significant digits; -0.0 is 0.0."""
    return float(f"{value:.{_DIGITS}g}") + 0.0


def _attained(one: Attainment) -> dict[str, Json]:
    return {
        "slo_attainment": rounded(one.share(one.num_attained)),
        "ttft_attainment": rounded(one.share(one.num_attained_ttft)),
        "token_attainment": rounded(one.share(one.num_attained_gaps)),
        "jct_attainment": rounded(one.share(one.num_attained_jct)),
    }


def _length_prediction(found: Calibration) -> dict[str, Json]:
    return {
        "answers": found.num_answers,
        "cut": found.num_cut,
        "covered_share": rounded(found.covered_share),
        "mean_absolute_error": rounded(found.mean_absolute_error),
        "mean_relative_error": rounded(found.mean_relative_error),
        "allocation_factor": rounded(found.allocation_factor),
    }


def _pass_time_error(error: PassTimeError | None) -> dict[str, Json] | None:
    if error is None:
        return None
    median, p90 = rounded(error.median), rounded(error.p90)
    return {"passes": error.num_passes, "median": median, "p90": p90}


def _role(role: RoleTally, pass_time_error: PassTimeError | None) -> dict[str, Json]:
    return {
        "workers": role.num_workers,
        "gpus": role.num_gpus,
        "busy_share": rounded(_rate(role.busy_s, role.worker_s)),
        "kvc_allocated_share": _share_of_blocks([role], lambda one: one.allocated_block_s),
        "kvc_written_share": _share_of_blocks([role], lambda one: one.written_block_s),
        "mean_running": rounded(role.mean_running),
        "mean_waiting": rounded(role.mean_waiting),
        "iterations": role.num_iterations,
        "decode_tokens": role.num_decode_tokens,
        "prompt_tokens": role.num_prompt_tokens,
        "iteration_tokens": _figures(role.iteration_tokens, 1),
        "pass_time_error": _pass_time_error(pass_time_error),
    }


def _figures(distribution: Distribution, factor: float) -> dict[str, Json]:
    figures = distribution.figures()
    if figures is None:
        return dict.fromkeys(Figures.__dataclass_fields__)
    scaled = figures.scaled(factor)
    values = zip(Figures.__dataclass_fields__, scaled.as_tuple(), strict=True)
    return {name: rounded(value) for name, value in values}


def _errors(record: RunRecord) -> dict[str, Json]:
    tally = record.requests
    named = {
        "ttft_ms": tally.ttft,
        "tbt_ms": tally.tbt,
        "tpot_ms": tally.tpot,
        "jct_s": tally.jct,
    }
    return {name: one.relative_error for name, one in named.items()}


def _share_of_blocks(roles: Sequence[RoleTally], of: Callable[[RoleTally], float]) -> float:
    capacity = sum(role.capacity_block_s for role in roles)
    return rounded(max(0.0, _rate(sum(of(role) for role in roles), capacity)))


def _rate(amount: float, per: float) -> float:
    return amount / per if per > 0 else 0.0
