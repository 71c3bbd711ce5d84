"""Who waits for whose answer in a closed workload."""

from simulator.traces.workload import Workload


class FollowUps:
    """The requests that arrive because another one has ended."""

    def __init__(self, workload: Workload) -> None:
        self._next_by_number: dict[int, int] = {}
        if not workload.is_closed:
            return
        last_by_session: dict[str, int] = {}
        for number, request in enumerate(workload.requests):
            if request.after_previous_s is not None:
                self._next_by_number[last_by_session[request.session]] = number
            last_by_session[request.session] = number

    def take(self, number: int) -> int | None:
        """The request that waited for the end of that one, if one did."""
        return self._next_by_number.pop(number, None)
