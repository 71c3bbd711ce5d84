"""Workers that went, and how long it may take until one is back: told to callers who could not be
served. Pure."""

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from scheduling.ids import WorkerId
from scheduling.messages import WorkerHello

# Where nothing better is known, and where there is nothing to wait for.
SHORTEST_WAIT_S: Final = 1.0
# A connection that broke is mended by then: whoever is still away has ended.
MENDED_WITHIN_S: Final = 2.0
# Names that never come back must not fill the memory.
_MAX_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class _Absence:
    role: str
    since_s: float
    start_s: float


class Absences:
    """A worker is expected back when it has had as long as its start took, should it start again.

    It may never come: then the caller asks in vain. It asks too early only where a start takes
    longer than the one before.
    """

    def __init__(self) -> None:
        self._by_worker: OrderedDict[WorkerId, _Absence] = OrderedDict()

    def went(self, hello: WorkerHello, now: float) -> None:
        """Its session ended."""
        self._by_worker.pop(hello.worker_id, None)
        self._by_worker[hello.worker_id] = _Absence(hello.role, now, hello.start_s)
        if len(self._by_worker) > _MAX_REMEMBERED:
            self._by_worker.popitem(last=False)

    def came(self, worker_id: WorkerId) -> None:
        """A session was opened."""
        self._by_worker.pop(worker_id, None)

    def wait_s(self, present: Set[str], now: float, ignored_s: float = 0.0) -> float:
        """Until of every role that is missing beside those `present` one may be back.

        Who has been away for less than `ignored_s` may be back at any moment.
        """
        first_back: dict[str, float] = {}
        for absence in self._by_worker.values():
            if absence.role not in present:
                is_new = now - absence.since_s < ignored_s
                back_at_s = now if is_new else absence.since_s + absence.start_s
                before = first_back.get(absence.role, back_at_s)
                first_back[absence.role] = min(before, back_at_s)
        return max([SHORTEST_WAIT_S, *(at_s - now for at_s in first_back.values())])
