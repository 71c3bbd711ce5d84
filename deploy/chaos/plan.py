"""What a round of chaos consists of. Pure values: a plan is known whole before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scheduling.sampling import SamplingParams

# How a request shall end: by itself, or by its caller, an operator or the clock.
Fate = Literal["finish", "cancel", "leave", "operator", "deadline"]
Kind = Literal["kill", "freeze", "drain", "cordon", "evacuate"]
REDIS = "redis"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The cluster of a round."""

    # "bundled" or one of engine.testing.FAMILIES.
    model: str
    policy: str
    # In the order in which prefill workers try them.
    transports: str
    num_prefill: int
    num_decode: int
    # "decode", or "mixed": they compute prompts as well, where prefill workers cannot.
    decode_role: str = "decode"
    num_prefill_blocks: int
    num_decode_blocks: int
    max_num_batched_tokens: int
    # Of decode workers: auto, swap or recompute, and the host memory for it.
    preemption: str
    swap_mib: int
    max_retries_per_task: int

    @property
    def workers(self) -> tuple[str, ...]:
        """Their names."""
        prefill = [f"prefill-{number}" for number in range(self.num_prefill)]
        return (*prefill, *(f"decode-{number}" for number in range(self.num_decode)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request and what its caller does."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    num_choices: int
    # The seed is that of the first answer; end_token_ids are filled in from the model.
    sampling: SamplingParams
    ignore_eos: bool
    # A stop string is cut out of the undisturbed text of the first answer, this far into it.
    stop_at: float | None
    num_stop_chars: int
    fate: Fate
    # Of all answers together, for the fates cancel, leave and operator.
    after_tokens: int
    # For the fate deadline.
    deadline_s: float
    # Between two events; above 0 for a slow reader.
    pause_s: float
    # Which of the round's clients asks.
    client: int


@dataclass(frozen=True, slots=True)
class Strike:
    """Harm to one process."""

    # Strikes when so large a part of the tokens that callers surely get was delivered to all of
    # them together: below 1, it is reached in every round, and a replay finds the cluster in about
    # the same state, however fast the machine is.
    at_fraction: float
    kind: Kind
    # prefill-0, decode-1, router-0, redis and so on.
    victim: str
    # Until it is started, woken or opened again.
    lasts_s: float

    def line(self) -> str:
        """For people."""
        moment = f"at {self.at_fraction:.1%} of the tokens"
        return f"{moment}: {self.kind} {self.victim} for {self.lasts_s:g} s"


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """One round."""

    seed: int
    setting: Setting
    num_at_once: int
    asks: tuple[Ask, ...]
    strikes: tuple[Strike, ...]

    def lines(self) -> Sequence[str]:
        """The plan for people, without the prompts."""
        fates = [ask.fate for ask in self.asks]
        counted = ", ".join(f"{fates.count(fate)} {fate}" for fate in sorted(set(fates)))
        return (
            f"chaos seed {self.seed}: {self.setting}",
            f"  {len(self.asks)} requests ({counted}), {self.num_at_once} at once",
            *(f"  {strike.line()}" for strike in self.strikes),
        )
