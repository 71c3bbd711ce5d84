"""When each running request must be over. Only live requests are in it, however late they end."""

import heapq

from scheduling.ids import RequestId

_MIN_COMPACTED = 64


class Deadlines:
    """O(log n) in and out; a request that ended leaves nothing that could hit a later one."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, RequestId]] = []
        self._at_by_request: dict[RequestId, float] = {}

    def __len__(self) -> int:
        """Entries kept, live or not yet swept."""
        return len(self._heap)

    def add(self, request_id: RequestId, at_s: float) -> None:
        """A request with a deadline was accepted."""
        self._at_by_request[request_id] = at_s
        heapq.heappush(self._heap, (at_s, request_id))

    def remove(self, request_id: RequestId) -> None:
        """The request is over; harmless where it had no deadline."""
        if self._at_by_request.pop(request_id, None) is None:
            return
        if len(self._heap) > max(_MIN_COMPACTED, 2 * len(self._at_by_request)):
            self._heap = [(at_s, known) for known, at_s in self._at_by_request.items()]
            heapq.heapify(self._heap)

    def next_at(self) -> float | None:
        """The next deadline, or None."""
        while self._heap:
            at_s, request_id = self._heap[0]
            if self._at_by_request.get(request_id) == at_s:
                return at_s
            heapq.heappop(self._heap)
        return None

    def take_due(self, now: float) -> list[RequestId]:
        """Requests whose deadline has passed, the longest overdue first."""
        due: list[RequestId] = []
        while (at_s := self.next_at()) is not None and at_s <= now:
            _, request_id = heapq.heappop(self._heap)
            del self._at_by_request[request_id]
            due.append(request_id)
        return due
