"""Notices workers that were started with another policy than their router."""

from router.fleet import Fleet
from scheduling.ids import Incarnation, WorkerId
from scheduling.messages import WorkerHello


class PolicyCheck:
    """Tells once of every life of such a worker, however often it connects.

    It is not refused: while a cluster is given another policy, one process after the other has it.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        # The life that was told of; one entry for each worker id ever connected.
        self._told: dict[WorkerId, Incarnation] = {}

    def is_news(self, hello: WorkerHello) -> bool:
        """It decides by another policy, and nobody has been told so of this life."""
        if not decides_otherwise(hello, self._policy):
            return False
        is_told = self._told.get(hello.worker_id) == hello.incarnation
        self._told[hello.worker_id] = hello.incarnation
        return not is_told


def decides_otherwise(hello: WorkerHello, policy: str) -> bool:
    """By another policy than that; not where it is too old to say by which."""
    return hello.policy not in ("", policy)


def num_deciding_otherwise(fleet: Fleet, policy: str) -> int:
    """Of the connected workers."""
    return sum(decides_otherwise(view.hello, policy) for view in fleet)
