"""What has happened in a round: tokens delivered, requests ended, strikes, problems."""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.chaos.oracle import RightAnswers
from deploy.chaos.plan import Ask, Strike
from deploy.chaos.verdict import (
    Ending,
    Received,
    is_forgiven,
    num_certain_tokens,
    problems_of,
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that may not be."""

    what: str
    # Of the request concerned; empty where it concerns the cluster.
    request_id: str = ""


class Record:
    """Shared by callers and strikes of one round; used by one event loop."""

    def __init__(self, say: Say) -> None:
        self.num_tokens = 0
        # Certain ones that will not come, for workers have failed their request too often.
        self.num_forgiven_tokens = 0
        self.problems: list[Problem] = []
        self.endings: Counter[str] = Counter()
        # What the answers went through: preemptions, migrations and so on.
        self.survived: Counter[str] = Counter()
        self.strikes: Counter[str] = Counter()
        self._say = say
        self._request_id_by_number: dict[int, str] = {}
        self._open: set[int] = set()
        # Workers that have had a part in an answer.
        self.workers: set[str] = set()
        # (tokens, order, future), the nearest first.
        self._waiting: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._orders = itertools.count()
        self._is_over = False

    @property
    def open_requests(self) -> list[str]:
        """Ids of those that have begun and not ended."""
        return [self._request_id_by_number[number] for number in sorted(self._open)]

    def delivered(self, num_tokens: int) -> None:
        """Callers have received so many more."""
        self.num_tokens += num_tokens
        while self._waiting and self._waiting[0][0] <= self.num_tokens:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(True)

    async def until_delivered(self, num_tokens: int) -> bool:
        """Return True when callers have received so many in all, False when no more will come."""
        if self.num_tokens >= num_tokens or self._is_over:
            return self.num_tokens >= num_tokens
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (num_tokens, next(self._orders), future))
        return await future

    def load_ended(self) -> None:
        """Strikes that were not reached need not wait any longer."""
        self._is_over = True
        for _, _, future in self._waiting:
            if not future.done():
                future.set_result(False)
        self._waiting.clear()

    def missed(self, strike: Strike, at_tokens: int, num_certain_tokens: int) -> None:
        """The load ended before the strike's moment: a problem, unless tokens were forgiven."""
        line = f"not reached: {strike.line()}"
        if at_tokens > num_certain_tokens - self.num_forgiven_tokens:
            self.say(line)
        else:
            self.add_problem(None, line)

    def began(self, ask: Ask, request_id: str) -> None:
        self._request_id_by_number[ask.number] = request_id
        self._open.add(ask.number)

    def ended(
        self, ask: Ask, right: RightAnswers, received: Sequence[Received], ending: Ending
    ) -> None:
        self._open.discard(ask.number)
        for what in problems_of(ask, right, received, ending):
            self.add_problem(ask, what)
        if is_forgiven(ending):
            self.num_forgiven_tokens += num_certain_tokens(ask, right)
        self.endings[ending.error_code or "finished"] += 1
        if ending.completion is None:
            return
        for choice in ending.completion.choices:
            self.survived["answers"] += 1
            self.survived["preemptions"] += choice.timings.num_preemptions
            self.survived["swaps"] += choice.timings.num_swaps
            self.survived["migrations"] += choice.timings.num_migrations
            self.survived["early bindings"] += choice.timings.early_binding
            self.survived["prefix hits"] += choice.usage.num_cached_tokens > 0
            self.workers |= {choice.timings.prefill_worker, choice.timings.decode_worker}
            self.survived[f"by {choice.timings.transport or 'no transfer'}"] += 1

    def add_problem(self, ask: Ask | None, what: str) -> None:
        """Note it at once, so that a reader can set it beside what happened then."""
        request_id = "" if ask is None else self._request_id_by_number.get(ask.number, "")
        about = "" if ask is None else f"request {ask.number} ({request_id}): "
        self.problems.append(Problem(about + what, request_id))
        self.say(f"PROBLEM {about}{what}")

    def say(self, line: str) -> None:
        """With the number of tokens so far."""
        self._say(f"[{self.num_tokens:5d} tokens] {line}")

    def summary(self) -> str:
        """For people."""
        parts = (self.endings, self.survived, self.strikes)
        return "; ".join(
            ", ".join(f"{number} {name}" for name, number in sorted(part.items())) for part in parts
        )
