"""What a command simulates: requests, hardware and goals, read once and run at any rate."""

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from simulator.hardware.description import Hardware
from simulator.metrics.summary import Json, rounded
from simulator.prompts import has_prefixes
from simulator.published_slo import PublishedChoice
from simulator.simulation import Scenario
from simulator.slo import ModelledIdleTimes, RequestSlo, SloAssignment, SloPlan
from simulator.slo_text import slo_plan
from simulator.traces.published_slos import read_slos
from simulator.traces.workload import Workload

# From this mean length on, prompts with names are cached in blocks of so many tokens: with smaller
# ones, most of a simulation's time would go into hashing prompts.
LONG_PROMPT_TOKENS, LONG_PROMPT_BLOCK_TOKENS = 32_768, 64
DEFAULT_SWAP_GIB = 0.25
# Of a model whose name says no size, for the choice of published goals.
_USUAL_BILLIONS = 8.0


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What may be said about a load beside its files."""

    # As `--slo` takes it, or the path of a table of published goals.
    slo: str = "published"
    seed: int = 0
    # None: the longest answer, as a power of two.
    max_tokens: int | None = None
    # None: the hardware's, or larger where prompts are long and share their beginnings. At most
    # the capacity of the hardware.
    block_size: int | None = None
    # False: nobody reuses anything, whatever the trace says.
    prefix_caching: bool = True
    # Host memory of each worker for KV that makes room, GiB; the default is that of real workers.
    swap_gib: float = DEFAULT_SWAP_GIB


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that a run needs but for policy, cluster and rate."""

    workload: Workload
    # With the block size that is simulated.
    hardware: Hardware
    plan: SloPlan
    slos: tuple[RequestSlo, ...]
    max_tokens: int
    prefix_caching: bool
    swap_bytes: int
    seed: int
    # Whatever was drawn, changed or chosen: a sentence each.
    notes: tuple[str, ...]
    # Whatever else a reader needs to repeat the run, for its `settings`.
    settings: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, workload: Workload, hardware: Hardware, settings: LoadSettings) -> "Load":
        """Raises: SloTextInvalid, TraceError where `slo` is a table with a mistake."""
        notes = list(workload.notes)
        has_names = has_prefixes(workload)
        is_cached = has_names and settings.prefix_caching
        if has_names and not is_cached:
            notes.append("Prefix caching is off: what prompts share is computed every time.")
        sized = _with_block_size(hardware, workload, settings, is_cached=is_cached)
        if sized.kv.block_size != hardware.kv.block_size:
            notes.append(f"KV blocks hold {sized.kv.block_size} tokens.")
        plan = _plan(settings.slo, _published_choice(sized, workload))
        longest = max(request.num_output_tokens for request in workload.requests)
        max_tokens = settings.max_tokens or 1 << (longest - 1).bit_length()
        if max_tokens < longest:
            num_cut = sum(r.num_output_tokens > max_tokens for r in workload.requests)
            notes.append(f"{num_cut} answers were cut off after {max_tokens} tokens.")
        idle = ModelledIdleTimes(sized.batch_time_model(), sized.limits.max_num_batched_tokens)
        return cls(
            workload,
            sized,
            plan,
            tuple(SloAssignment(plan, idle, settings.seed).slos_of(workload.requests)),
            max_tokens,
            is_cached,
            int(settings.swap_gib * 2**30),
            settings.seed,
            tuple(notes),
            {
                "max_tokens": max_tokens,
                "block_size": sized.kv.block_size,
                "prefix_caching": is_cached,
                "swap_gib": rounded(settings.swap_gib),
            },
        )

    def scenario(self, rate_scale: float) -> Scenario:
        """The load at so many times its rate."""
        return Scenario(
            self.workload,
            self.hardware,
            self.slos,
            self.max_tokens,
            rate_scale,
            self.prefix_caching,
            self.swap_bytes,
        )


def _with_block_size(
    hardware: Hardware, workload: Workload, settings: LoadSettings, *, is_cached: bool
) -> Hardware:
    block_size = settings.block_size or hardware.kv.block_size
    if settings.block_size is None and is_cached:
        mean = statistics.fmean(r.num_prompt_tokens for r in workload.requests)
        if mean >= LONG_PROMPT_TOKENS:
            block_size = max(block_size, LONG_PROMPT_BLOCK_TOKENS)
    kv = hardware.kv.model_copy(update={"block_size": block_size})
    return hardware.model_copy(update={"kv": kv})


def _plan(text: str, choice: PublishedChoice) -> SloPlan:
    if text.endswith((".csv", ".csv.gz")):
        return slo_plan("published", replace(choice, rows=read_slos(text)))
    return slo_plan(text, choice)


def _published_choice(hardware: Hardware, workload: Workload) -> PublishedChoice:
    billions = re.search(r"(\d+(?:\.\d+)?)B\b", hardware.model, re.IGNORECASE)
    return PublishedChoice(
        model_billions=float(billions[1]) if billions else _USUAL_BILLIONS,
        prompt_tokens=statistics.fmean(r.num_prompt_tokens for r in workload.requests),
        output_tokens=statistics.fmean(r.num_output_tokens for r in workload.requests),
    )
