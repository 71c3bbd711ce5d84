"""What the ranks of one worker say of their KV, put together to what its core is told.

Every rank performs every order on its own share of each block and answers for itself. The core
knows nothing of ranks: of each order it hears once, and no sooner than it is true of all of them.
Pure: orders and answers in, events for the core and orders for the ranks out.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from scheduling.ids import TaskId
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    ExpectKv,
    KvAction,
    KvArrived,
    KvRefused,
    KvSwapped,
    Push,
    PushFinished,
    QuarantineCleared,
    RevokeKv,
    SwapIn,
    SwapOut,
    WorkerEvent,
)

KvEvent: TypeAlias = PushFinished | KvArrived | KvRefused | QuarantineCleared | KvSwapped


@dataclass(slots=True)
class RankOutcome:
    """What follows from an order or an answer."""

    # For the core.
    events: list[KvEvent] = field(default_factory=list)
    # Ranks, and what each is to perform.
    orders: list[tuple[int, KvAction]] = field(default_factory=list)


@dataclass(slots=True)
class _Pushes:
    """The pushes of one task that have not been told yet, in the order of their orders.

    Answers carry no name but the task's, and the core counts them: the n-th of each rank are taken
    for one. Where none fails they are, since each rank answers in order; where one fails, all fail.
    """

    transfer_id: str
    # Of each rank, those that wait for the other ranks'.
    answers: list[deque[PushFinished]]
    num_open: int = 0
    # The first error of all, which ends the whole transfer.
    error: str | None = None


@dataclass(slots=True)
class _Swaps:
    """Copies between pool and host memory; every rank performs them in one order."""

    answers: list[deque[KvSwapped]]
    orders: deque[SwapOut | SwapIn] = field(default_factory=deque)


class RankKv:
    """For the engine thread of rank 0. Answers of one rank come in the order in which it gave them.

    A task is awaited again, or revoked again, only after the core has heard of the time before.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._lost: set[int] = set()
        self._pushes_by_task: dict[TaskId, _Pushes] = {}
        # Ranks that have not answered yet.
        self._awaiting: dict[TaskId, set[int]] = {}
        self._revoking: dict[TaskId, set[int]] = {}
        self._swaps = _Swaps(answers=[deque() for _ in range(num_ranks)])

    @property
    def is_waiting(self) -> bool:
        """Some rank still owes an answer of which the core has not heard."""
        return bool(self._pushes_by_task or self._awaiting or self._revoking or self._swaps.orders)

    def ordered(self, action: KvAction) -> RankOutcome:
        """The core wants this of every rank; it is on its way to those that live."""
        outcome = RankOutcome()
        match action:
            case Push(task_id, target):
                pushes = self._pushes_by_task.get(task_id)
                if pushes is None:
                    answers: list[deque[PushFinished]] = [deque() for _ in range(self._num_ranks)]
                    pushes = _Pushes(target.transfer_id, answers)
                    self._pushes_by_task[task_id] = pushes
                pushes.num_open += 1
            case AwaitKv(task_id):
                assert task_id not in self._awaiting, "a task is awaited once at a time"
                self._awaiting[task_id] = set(range(self._num_ranks))
            case RevokeKv(task_id):
                assert task_id not in self._revoking, "a task is revoked once at a time"
                # What arrives from now on is of no interest.
                self._awaiting.pop(task_id, None)
                self._revoking[task_id] = set(range(self._num_ranks))
            case SwapOut() | SwapIn():
                self._swaps.orders.append(action)
            case CancelPush() | ExpectKv():
                pass  # nobody answers these
            case _:
                assert_never(action)
        for rank in sorted(self._lost):
            self._answer_for_lost(rank, action, outcome)
        return outcome

    def told(self, rank: int, event: WorkerEvent) -> RankOutcome:
        """A rank has answered. An answer that nobody asked for, or that came late, is nothing."""
        assert isinstance(event, KvEvent), "the KV side of a worker tells of nothing else"
        outcome = RankOutcome()
        if rank not in self._lost:
            self._take(rank, event, outcome)
        return outcome

    def lost(self, rank: int) -> RankOutcome:
        """A rank is gone: it answers nothing more, and what it owed has failed.

        Its pool is gone with it, so nobody writes into that.
        """
        outcome = RankOutcome()
        if rank in self._lost:
            return outcome
        self._lost.add(rank)
        for task_id, pushes in list(self._pushes_by_task.items()):
            for _ in range(pushes.num_open - len(pushes.answers[rank])):
                self._take(rank, _failed_push(task_id, rank), outcome)
        for task_id in list(self._awaiting):
            self._take(rank, _refusal(task_id, rank), outcome)
        for task_id in list(self._revoking):
            self._take(rank, QuarantineCleared(task_id), outcome)
        for order in list(self._swaps.orders)[len(self._swaps.answers[rank]) :]:
            self._take(rank, _empty_copy(order), outcome)
        return outcome

    def check_invariants(self) -> None:
        """Raise AssertionError where something is kept of which the core has heard."""
        for pushes in self._pushes_by_task.values():
            counts = [len(answers) for answers in pushes.answers]
            assert min(counts) == 0
            assert max(counts) <= pushes.num_open
            assert pushes.num_open > 0
        for waiting in (*self._awaiting.values(), *self._revoking.values()):
            assert waiting
            assert not waiting & self._lost
        counts = [len(answers) for answers in self._swaps.answers]
        assert min(counts) == 0
        assert max(counts) <= len(self._swaps.orders)

    def _answer_for_lost(self, rank: int, action: KvAction, outcome: RankOutcome) -> None:
        match action:
            case Push(task_id):
                self._take(rank, _failed_push(task_id, rank), outcome)
            case AwaitKv(task_id):
                self._take(rank, _refusal(task_id, rank), outcome)
            case RevokeKv(task_id):
                self._take(rank, QuarantineCleared(task_id), outcome)
            case SwapOut() | SwapIn():
                self._take(rank, _empty_copy(action), outcome)
            case CancelPush() | ExpectKv():
                pass  # nobody answers these
            case _:
                assert_never(action)

    def _take(self, rank: int, event: KvEvent, outcome: RankOutcome) -> None:
        match event:
            case PushFinished():
                self._take_push(rank, event, outcome)
            case KvArrived(task_id):
                if self._has_answered(self._awaiting, task_id, rank):
                    outcome.events.append(event)
            case KvRefused(task_id):
                # One is enough; those that arrive all the same are not waited for.
                if rank in self._awaiting.get(task_id, ()):
                    del self._awaiting[task_id]
                    outcome.events.append(event)
            case QuarantineCleared(task_id):
                if self._has_answered(self._revoking, task_id, rank):
                    outcome.events.append(event)
            case KvSwapped():
                self._take_swap(rank, event, outcome)
            case _:
                assert_never(event)

    def _has_answered(
        self, waiting_by_task: dict[TaskId, set[int]], task: TaskId, rank: int
    ) -> bool:
        """Whether this was the last rank that the task waited for."""
        waiting = waiting_by_task.get(task)
        if waiting is None or rank not in waiting:
            return False
        waiting.remove(rank)
        if not waiting:
            del waiting_by_task[task]
        return not waiting

    def _take_push(self, rank: int, event: PushFinished, outcome: RankOutcome) -> None:
        task_id = event.task_id
        pushes = self._pushes_by_task.get(task_id)
        if pushes is None or len(pushes.answers[rank]) >= pushes.num_open:
            return
        pushes.answers[rank].append(event)
        if event.error is not None and pushes.error is None:
            pushes.error = event.error
            cancel = CancelPush(task_id, pushes.transfer_id)
            others = set(range(self._num_ranks)) - self._lost - {rank}
            outcome.orders += [(other, cancel) for other in sorted(others)]
        if all(pushes.answers):
            parts = [answers.popleft() for answers in pushes.answers]
            outcome.events.append(_joined(parts, pushes.error))
            pushes.num_open -= 1
            if not pushes.num_open:
                del self._pushes_by_task[task_id]

    def _take_swap(self, rank: int, event: KvSwapped, outcome: RankOutcome) -> None:
        swaps = self._swaps
        if len(swaps.answers[rank]) >= len(swaps.orders):
            return
        swaps.answers[rank].append(event)
        if all(swaps.answers):
            swaps.orders.popleft()
            parts = [answers.popleft() for answers in swaps.answers]
            outcome.events.append(max(parts, key=lambda part: part.copy_s))


def _joined(parts: list[PushFinished], error: str | None) -> PushFinished:
    """One push, of which each rank moved its share; the slowest says how long it took, and how."""
    if error is not None:
        return PushFinished(parts[0].task_id, 0, 0, 0.0, error)
    slowest = max(parts, key=lambda part: part.copy_s)
    return replace(slowest, num_bytes=sum(part.num_bytes for part in parts))


def _gone(rank: int) -> str:
    return f"rank {rank} of this worker is gone; see the worker's log"


def _failed_push(task_id: TaskId, rank: int) -> PushFinished:
    return PushFinished(task_id, 0, 0, 0.0, _gone(rank))


def _refusal(task_id: TaskId, rank: int) -> KvRefused:
    return KvRefused(task_id, "transfer_failed", _gone(rank))


def _empty_copy(order: SwapOut | SwapIn) -> KvSwapped:
    return KvSwapped(len(order.block_ids), 0.0, isinstance(order, SwapOut))
