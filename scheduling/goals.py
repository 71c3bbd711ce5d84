"""When what of an answer is due, by goals for its first token, its gaps and its end. Pure.

A goal for the end says nothing of single tokens. What follows from it for them, where the caller
names none for these: the first may wait as long as enough time is left for the others, and these
share what is left when it has come.
Source: AccelGen, slack of requests with a goal for the whole job: the wait that is allowed is
spread over what is still to come, and earliness carried forward.
"""

import math

from scheduling.value import value

# Of the time of a whole answer: what is kept for the tokens after the first, or more where they
# have lately taken more.
_KEPT_SHARE = 0.5


@value
class Goals:
    """Of one answer, in seconds, each > 0."""

    # From arrival to the first token.
    ttft_s: float
    # The mean gap between tokens.
    tpot_s: float
    # From arrival to the last token; inf: nobody asked for it.
    jct_s: float = math.inf
    # Each single gap; never below `tpot_s`, and inf: only the mean counts.
    tbt_s: float = math.inf

    @property
    def leaves_first_token_to_end(self) -> bool:
        """Nobody named a goal for it that says more than the one for the end."""
        return self.jct_s < math.inf and self.ttft_s >= self.jct_s

    @property
    def leaves_gaps_to_end(self) -> bool:
        """The same of gaps: one for each alone says nothing of how many there may be."""
        return self.jct_s < math.inf and self.tpot_s >= min(self.jct_s, self.tbt_s)

    @classmethod
    def wished(
        cls,
        ttft_s: float | None,
        tpot_s: float | None,
        jct_s: float | None,
        usual: "Goals",
        tbt_s: float | None = None,
    ) -> "Goals":
        """What a caller named, None where it did not; all of `usual` if it named no end.

        Whoever names the end does not care when tokens come before it, unless it says so.
        """
        if jct_s is not None:
            usual = cls(ttft_s=jct_s, tpot_s=jct_s, jct_s=jct_s)
        longest_gap_s = usual.tbt_s if tbt_s is None else tbt_s
        mean_gap_s = usual.tpot_s if tpot_s is None else tpot_s
        return cls(
            usual.ttft_s if ttft_s is None else ttft_s,
            min(mean_gap_s, longest_gap_s),
            usual.jct_s,
            longest_gap_s,
        )


@value
class DueTimes:
    """Of one answer that is not over, by what is known of it now."""

    goals: Goals
    arrival_at_s: float
    # None where it has not come.
    first_token_at_s: float | None
    num_tokens: int
    # In all: expected, and as an upper bound.
    num_expected: int
    num_at_most: int
    # What computing the prompt is expected to take, and what so many tokens, by those of late.
    prompt_s: float
    token_s: float
    # When the request is ended, whatever is missing; inf for never.
    deadline_at_s: float = math.inf
    # Of the tokens, those that the caller had from a router that was lost: nobody knows when they
    # came, so they count as if they had come with the first one here.
    num_resumed: int = 0

    @property
    def num_to_come(self) -> int:
        """Tokens, as expected; one that has outlived its prediction ends with the next."""
        return max(1, self.num_expected - self.num_tokens)

    @property
    def next_token_at_s(self) -> float:
        """The first at the latest so that the rest can still be in time, the others evenly."""
        goals, arrival_at_s, first_at_s = self.goals, self.arrival_at_s, self.first_token_at_s
        num_tokens = self.num_tokens - self.num_resumed
        if first_at_s is None:
            due_at_s = arrival_at_s + goals.ttft_s
        else:
            due_at_s = first_at_s + goals.tpot_s * num_tokens
        end_at_s = arrival_at_s + goals.jct_s
        if first_at_s is None and goals.leaves_first_token_to_end:
            kept_s = max(_KEPT_SHARE * goals.jct_s, self._answer_s)
            due_at_s = min(due_at_s, end_at_s - kept_s)
        if first_at_s is not None and goals.leaves_gaps_to_end:
            share = num_tokens / max(1, num_tokens + self.num_to_come - 1)
            due_at_s = min(due_at_s, first_at_s + share * (end_at_s - first_at_s))
        return min(due_at_s, end_at_s, self.deadline_at_s)

    @property
    def end_at_s(self) -> float:
        """Of an answer as long as it may be. Source: EcoServe, the deadline of a request."""
        goals = self.goals
        due_at_s = self.arrival_at_s + goals.ttft_s + self.num_at_most * goals.tpot_s
        return min(due_at_s, self.arrival_at_s + goals.jct_s, self.deadline_at_s)

    @property
    def hopeless_at_s(self) -> float:
        """From when on its first token or its end cannot be in time any more, if the prompt is
        still to be computed; inf where nothing is due any more."""
        hopeless_at_s = self.arrival_at_s + self.goals.jct_s - self.prompt_s
        if self.goals.leaves_first_token_to_end:
            hopeless_at_s -= self._answer_s
        if self.num_tokens == self.num_resumed:
            first_due_at_s = self.arrival_at_s + self.goals.ttft_s
            hopeless_at_s = min(hopeless_at_s, first_due_at_s - self.prompt_s)
        return hopeless_at_s

    def gap_s(self, now: float, *, is_prompt_ahead: bool) -> float:
        """The mean gap with which what is to come ends in time.

        Where it would not at the pace of late, haste would be in vain, and at the cost of others:
        then it is the caller's own goal for gaps alone, inf where it named none.
        """
        goals = self.goals
        named_s = goals.tpot_s if goals.tpot_s < goals.jct_s else math.inf
        left_s = self.arrival_at_s + goals.jct_s - now - self.prompt_s * is_prompt_ahead
        if not (goals.leaves_gaps_to_end and 0 <= self._answer_s < left_s and self.token_s):
            return named_s
        return min(named_s, left_s / self.num_to_come)

    @property
    def _answer_s(self) -> float:
        """What the tokens after the next one are expected to take."""
        return (self.num_to_come - 1) * self.token_s
