"""The sending side's queues: pushes that the engine thread orders and never waits for.

Each peer has a lane: a bounded queue and a thread, so that a slow or dead peer holds up no other.
The prefill worker submits when its core wants a push; the outcome comes back by callback on the
lane's thread, exactly once for every accepted job, and only when its source blocks are no longer
read.
"""

import threading
from collections.abc import Mapping

from kvtransfer.device import KvSource
from kvtransfer.errors import PusherClosed
from kvtransfer.lane import LaneOwner, LaneSettings, OnDone, PeerLane, PushJob
from kvtransfer.protocol import Transport
from runtime.clock import Clock
from scheduling.kv_export import KvExport


class Pusher:
    """Pushes blocks of one source pool to any number of peers. Calls come from any thread."""

    def __init__(
        self,
        transports: Mapping[str, Transport],
        source: KvSource,
        on_done: OnDone,
        settings: LaneSettings,
        clock: Clock,
    ) -> None:
        self._transport_by_name = dict(transports)
        self._source = source
        self._owner = LaneOwner(on_done, self._may_retire)
        self._settings = settings
        self._clock = clock
        # Guards what follows; never held while a lane works or a callback runs. A lane's own lock
        # is taken after it, never before.
        self._lock = threading.Lock()
        self._lane_by_worker: dict[str, PeerLane] = {}
        self._is_closed = False

    def submit(self, job: PushJob) -> None:
        """Queue a push and return at once; the outcome comes by callback.

        Raises: BacklogFull, StaleIncarnation, PusherClosed; then there is no callback.
        """
        with self._lock:
            self._lane_of(job.export).submit(job)

    def has_room(self, worker_id: str) -> bool:
        """Whether a submit to this peer would be accepted now."""
        with self._lock:
            lane = self._lane_by_worker.get(worker_id)
            return not self._is_closed and (lane is None or lane.has_room())

    def prepare(self, export: KvExport) -> None:
        """Connect ahead of the first job: mapping a large pool takes a while.

        Raises: StaleIncarnation, PusherClosed. A failure to connect shows at the first job.
        """
        with self._lock:
            self._lane_of(export).prepare(export)

    def cancel(self, transfer_id: str) -> None:
        """Stop every job submitted for this transfer; each still gets its callback.

        A running copy ends first; the others are answered when their turn comes.
        """
        for lane in self._lanes():
            lane.cancel(transfer_id)

    def close(self, drain_timeout_s: float) -> bool:
        """Take no more jobs, finish those there are within the time, cancel the rest.

        Twice is harmless. Returns True when every thread has ended.
        """
        with self._lock:
            self._is_closed = True
        lanes = self._lanes()
        for lane in lanes:
            lane.begin_close(must_cancel=False)
        deadline_at_s = self._clock.now() + drain_timeout_s
        for lane in lanes:
            lane.join(max(0.0, deadline_at_s - self._clock.now()))
        for lane in lanes:
            lane.begin_close(must_cancel=True)
        # A batch is the most that a cancelled lane still finishes.
        has_ended = [lane.join(self._settings.cancel_timeout_s) for lane in lanes]
        return all(has_ended)

    def _lanes(self) -> list[PeerLane]:
        with self._lock:
            return list(self._lane_by_worker.values())

    def _lane_of(self, export: KvExport) -> PeerLane:
        """The caller holds the lock, so the lane cannot retire before it has the job."""
        if self._is_closed:
            raise PusherClosed
        lane = self._lane_by_worker.get(export.worker_id)
        if lane is None:
            lane = PeerLane(
                export.worker_id,
                self._transport_by_name,
                self._source,
                self._owner,
                self._settings,
                self._clock,
            )
            self._lane_by_worker[export.worker_id] = lane
        return lane

    def _may_retire(self, lane: PeerLane) -> bool:
        with self._lock:
            if not lane.try_retire():
                return False
            if self._lane_by_worker.get(lane.worker_id) is lane:
                del self._lane_by_worker[lane.worker_id]
            return True
