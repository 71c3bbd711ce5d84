"""Is what a caller got the undisturbed answer, or a beginning of it and a fitting error? Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from deploy.chaos.oracle import RightAnswer, RightAnswers
from deploy.chaos.plan import Ask
from scheduling import sampling
from scheduling.lifecycle import Change
from tandemserve import Completion, Delta, RequestHistory, TokenLogprobs

# How a request may end other than by its last token, and by which fate.
LEFT = "left"
WORKER_FAILED = "worker_failed"
_ENDINGS = {
    "finish": frozenset[str](),
    "cancel": frozenset({"cancelled"}),
    "leave": frozenset({LEFT}),
    "operator": frozenset({"cancelled"}),
    # The last moment may come while the client waits for a router, and no attempt is left then.
    "deadline": frozenset(
        {"deadline_exceeded", "connection_failed", "no_worker_available", "stale_incarnation"}
    ),
}


@dataclass(slots=True)
class Received:
    """One answer as it came, piece by piece."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def take(self, delta: Delta) -> str | None:
        """Append a piece; returns what is wrong with its place."""
        expected = len(self.token_ids)
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.logprobs += delta.logprobs
        if delta.first_token_index == expected:
            return None
        return f"a piece begins at token {delta.first_token_index} instead of {expected}"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended: with a completion, or with the code of an error."""

    completion: Completion | None
    error_code: str = ""
    error_message: str = ""
    # The router's history of the request shows that workers failed it as often as is tolerated.
    has_used_up_tries: bool = False


def problems_of(
    ask: Ask,
    right: RightAnswers,
    received: Sequence[Received],
    ending: Ending,
) -> list[str]:
    """What is wrong, in words without any text of prompt or answer; empty when nothing is."""
    problems = [
        f"answer {index}: {problem}"
        for index, (got, wanted) in enumerate(zip(received, right.choices, strict=True))
        for problem in _differences(got, wanted)
    ]
    if ending.completion is None:
        if ending.error_code not in _ENDINGS[ask.fate] and not is_forgiven(ending):
            problems.append(
                f"fate {ask.fate}, but it ended with {ending.error_code}: {ending.error_message}"
            )
        return problems
    return problems + _differences_of_the_whole(ending.completion, right, received)


def has_used_up_tries(history: RequestHistory, max_retries: int) -> bool:
    """Whether workers failed one of the answers so often that its router may give it up."""
    # The counter is of evacuations as well, which cost none of the tries.
    num_evacuations = {
        timeline.index: sum(event.change == Change.EVACUATED for event in timeline.events)
        for timeline in history.timelines
    }
    return any(
        answer.num_migrations - num_evacuations.get(answer.index, 0) >= max_retries
        for answer in history.request.answers
    )


def is_forgiven(ending: Ending) -> bool:
    """It ended early, which nobody asked for, and the cluster had done all it may do."""
    return ending.error_code == WORKER_FAILED and ending.has_used_up_tries


def num_certain_tokens(ask: Ask, right: RightAnswers) -> int:
    """How many its caller receives at least, however fast anything is."""
    if ask.fate == "deadline":
        return 0
    whole = sum(len(choice.token_ids) for choice in right.choices)
    return whole if ask.fate == "finish" else min(whole, ask.after_tokens)


def _differences(got: Received, wanted: RightAnswer) -> list[str]:
    """Of a beginning."""
    problems, num_tokens = [], len(got.token_ids)
    if tuple(got.token_ids) != wanted.token_ids[:num_tokens]:
        at = _first_difference(got.token_ids, wanted.token_ids)
        problems.append(f"token {at} of {len(wanted.token_ids)} is wrong, of {num_tokens} received")
    elif not wanted.text.startswith(got.text):
        problems.append(f"the text of its first {num_tokens} tokens is wrong")
    if _plain(got.logprobs) != list(wanted.logprobs[:num_tokens]):
        problems.append(f"logprobs of its first {num_tokens} tokens are wrong")
    return problems


def _differences_of_the_whole(
    answer: Completion, right: RightAnswers, received: Sequence[Received]
) -> list[str]:
    problems = []
    for choice, wanted, got in zip(answer.choices, right.choices, received, strict=True):
        about = f"answer {choice.index}"
        if choice.token_ids != wanted.token_ids:
            at = _first_difference(choice.token_ids, wanted.token_ids)
            problems.append(
                f"{about}: whole, it has {len(choice.token_ids)} tokens instead of "
                f"{len(wanted.token_ids)}, the first wrong one is {at}"
            )
        if choice.text != wanted.text:
            problems.append(f"{about}: whole, its text is wrong")
        ends = (str(choice.finish_reason), choice.matched_stop is None)
        if ends != (wanted.finish_reason, wanted.matched_stop is None):
            problems.append(f"{about}: ended by {ends[0]} instead of {wanted.finish_reason}")
        elif choice.matched_stop != wanted.matched_stop:
            problems.append(f"{about}: another stop condition was met")
        if _plain(choice.logprobs) != list(wanted.logprobs):
            problems.append(f"{about}: whole, its logprobs are wrong")
        if (tuple(got.token_ids), got.text) != (choice.token_ids, choice.text):
            problems.append(f"{about}: its pieces are not the whole")
        if choice.usage.num_output_tokens != len(wanted.token_ids):
            problems.append(f"{about}: {choice.usage.num_output_tokens} output tokens counted")
    told = [entry for entry in answer.prompt_logprobs if entry is not None]
    if _plain(told) != list(right.prompt_logprobs):
        problems.append("logprobs of the prompt are wrong")
    return problems


def _plain(entries: Sequence[TokenLogprobs]) -> list[sampling.TokenLogprobs]:
    """As the engine says it."""
    return [
        sampling.TokenLogprobs(
            entry.logprob, tuple((top.token_id, top.logprob) for top in entry.top)
        )
        for entry in entries
    ]


def _first_difference(got: Sequence[int], wanted: Sequence[int]) -> int:
    pairs = zip(got, wanted, strict=False)
    shorter = min(len(got), len(wanted))
    return next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
