"""What decode workers have free, as the queue of answers that wait for room asks for it.

The members of a group go to one worker as long as it has room for them: they begin together there
and, by prediction, end together, so that room comes back in one piece.
"""

from router.events import Action
from router.reservations import Reservations
from router.state import RouterState
from scheduling.ids import TaskId, WorkerId


class DecodeRoom:
    """Implements `scheduling.generation_queue.Room`, for one look at the queue."""

    def __init__(self, state: RouterState, reservations: Reservations, now: float) -> None:
        self._state = state
        self._reservations = reservations
        self._now = now
        # Length and worker of the group that is admitted now.
        self._length: int | None = None
        self._worker_id: WorkerId | None = None
        # Questions to the ledger about what was admitted.
        self.actions: list[Action] = []

    @property
    def max_response_tokens(self) -> int:
        """See `Room.max_response_tokens`."""
        return self._reservations.most_free_decode_tokens

    def admit(self, task_id: TaskId) -> bool:
        """See `Room.admit`."""
        sequence = self._state.sequence_by_task[task_id]
        length = -(-sequence.num_response_tokens // self._state.settings.length_quantum_tokens)
        first = self._worker_id if self._is_grouping and length == self._length else None
        reserve = self._reservations.decode(sequence, self._now, first)
        if reserve is None:
            return False
        self.actions.append(reserve)
        self._length, self._worker_id = length, reserve.preferences[0][0]
        return True

    @property
    def _is_grouping(self) -> bool:
        return self._state.policy.is_grouping
