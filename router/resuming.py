"""Answers that another router began and lost: what the caller has of them, checked.

The caller sends back the tokens that it has, and each answer is computed on from there, as after a
lost worker. Nothing of it is trusted further than a prompt would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.wire.sampling import StopWishes
from scheduling.errors import InvalidRequest
from scheduling.sampling import StopParams

# Of each answer in order: the tokens to go on from, or None where it has ended.
ResumedTokens = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class ToldAnswer:
    """What a caller says of one answer."""

    index: int
    token_ids: tuple[int, ...]
    is_finished: bool


@dataclass(frozen=True, slots=True)
class ResumeWishes:
    """What a caller says of the answers that it has begun to receive."""

    token_ids: ResumedTokens = ()
    # What the lost router had drawn or chosen; None where the caller never heard.
    seed: int | None = None
    max_tokens: int | None = None

    @property
    def starts(self) -> tuple[int | None, ...]:
        """How many tokens of each answer the caller has; None for one that has ended."""
        return tuple(None if ids is None else len(ids) for ids in self.token_ids)

    def limited(self, stop: StopWishes) -> StopWishes:
        """Where the caller named no limit, the one of the lost router."""
        if stop.max_tokens is not None or self.max_tokens is None:
            return stop
        return replace(stop, max_tokens=self.max_tokens)

    def check(self, stop: StopParams, vocab_size: int) -> None:
        """Refuse what is no beginning of an answer to this request. Raises: InvalidRequest."""
        ends = frozenset(stop.stop_token_ids)
        for index, token_ids in enumerate(self.token_ids):
            if not token_ids:
                continue
            if len(token_ids) >= stop.max_tokens:
                raise _wrong(index, "is complete; leave its newest token out, it is sent again")
            if max(token_ids) >= vocab_size:
                raise _wrong(index, f"has a token id outside of the vocabulary of {vocab_size}")
            if not ends.isdisjoint(token_ids):
                raise _wrong(index, "goes on after an end token; leave the newest token out")


def resume_wishes(
    num_choices: int,
    told: Sequence[ToldAnswer],
    seed: int | None = None,
    max_tokens: int | None = None,
) -> ResumeWishes:
    """What a caller says of lost answers, in order. Raises: InvalidRequest."""
    token_ids: list[tuple[int, ...] | None] = [()] * num_choices
    seen: set[int] = set()
    for answer in told:
        if answer.index >= num_choices or answer.index in seen:
            raise _wrong(answer.index, "is named twice, or was not asked for; send each once")
        seen.add(answer.index)
        token_ids[answer.index] = None if answer.is_finished else answer.token_ids
    if all(ids is None for ids in token_ids):
        raise InvalidRequest("resume", "every answer has ended; nothing is left to be computed")
    return ResumeWishes(tuple(token_ids) if seen else (), seed, max_tokens)


def _wrong(index: int, problem: str) -> InvalidRequest:
    return InvalidRequest("resume", f"answer {index} {problem}")
