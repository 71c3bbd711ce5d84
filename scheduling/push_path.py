"""What pushes to each peer take, learnt from those that ended, and what of them is still under way.

Pure: orders and outcomes in, figures out.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from scheduling.ids import WorkerId
from scheduling.push_pacing import PushPath
from scheduling.value import value

# Pushes that are remembered of each peer: more would say no more, and fitting is quadratic.
WINDOW = 12
# Peers that are remembered; of those without a push under way the longest unused is forgotten.
MAX_PEERS = 256


@value
class MeasuredPush:
    """One that ended well."""

    num_blocks: int
    seconds: float


def fitted(pushes: Sequence[MeasuredPush], *, are_cores_shared: bool) -> PushPath:
    """The line through pushes, at least one, that a few held up do not bend: by medians of slopes.

    Where all were of one size nothing is known of the fixed cost, and it counts as none: then more
    pushes are made, of other sizes. `are_cores_shared`: pushes take their time from passes.
    """
    slopes = [
        (one.seconds - other.seconds) / (one.num_blocks - other.num_blocks)
        for one, other in combinations(pushes, 2)
        if one.num_blocks != other.num_blocks
    ]
    # More blocks never take less time.
    most_s = median(one.seconds / one.num_blocks for one in pushes)
    per_block_s = min(max(0.0, median(slopes)), most_s) if slopes else most_s
    fixed_s = median(one.seconds - one.num_blocks * per_block_s for one in pushes)
    # All of it: a copy that takes one core from a team of threads holds up the whole team.
    return PushPath(max(0.0, fixed_s), per_block_s, 1.0 if are_cores_shared else 0.0)


@dataclass(slots=True)
class _Peer:
    ended: deque[MeasuredPush] = field(default_factory=lambda: deque(maxlen=WINDOW))
    # None: to be fitted again.
    path: PushPath | None = None
    # What each push that is under way takes, as predicted when it was ordered; in that order, in
    # which they end. As many as the worker has blocks at most: each holds one.
    open_s: deque[float] = field(default_factory=deque)
    # Of all these, less the time that went by.
    left_s: float = 0.0
    looked_at_s: float = 0.0
    # Part of `left_s` from which no time goes until the next look.
    new_s: float = 0.0


class PushPaths:
    """All peers of one worker. One thread owns it."""

    def __init__(self, *, are_cores_shared: bool) -> None:
        self._are_cores_shared = are_cores_shared
        self._peer_by_worker: OrderedDict[WorkerId, _Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peer_by_worker)

    def path_to(self, worker_id: WorkerId) -> PushPath | None:
        """None before the first push there has ended."""
        peer = self._peer_by_worker.get(worker_id)
        if peer is None or not peer.ended:
            return None
        if peer.path is None:
            peer.path = fitted(peer.ended, are_cores_shared=self._are_cores_shared)
        return peer.path

    def busy_s(self, worker_id: WorkerId, now: float) -> float:
        """How long the path is likely to be taken by pushes that have not ended."""
        peer = self._peer_by_worker.get(worker_id)
        if peer is None:
            return 0.0
        self._look(peer, now)
        return peer.left_s

    def ordered(self, worker_id: WorkerId, num_blocks: int, now: float | None) -> None:
        """A push is on its way. None: just now, but nobody knows what time it is."""
        path = self.path_to(worker_id)
        peer = self._peer_by_worker.get(worker_id)
        if peer is None:
            peer = self._peer_by_worker[worker_id] = _Peer()
        self._peer_by_worker.move_to_end(worker_id)
        seconds = 0.0 if path is None else path.seconds(num_blocks)
        if now is None:
            peer.new_s += seconds
        else:
            self._look(peer, now)
        peer.open_s.append(seconds)
        peer.left_s += seconds
        self._forget_one()

    def ended(self, worker_id: WorkerId, push: MeasuredPush | None) -> None:
        """One that was ordered is over; None where it failed, or says nothing."""
        peer = self._peer_by_worker.get(worker_id)
        assert peer is not None, "a peer is remembered while a push is under way"
        peer.open_s.popleft()
        if push is not None and push.num_blocks > 0 and push.seconds > 0:
            peer.ended.append(push)
            peer.path = None

    def _look(self, peer: _Peer, now: float) -> None:
        went_by_s = max(0.0, now - peer.looked_at_s)
        old_s = max(0.0, peer.left_s - peer.new_s - went_by_s)
        # One is carried out at a time: what takes longer than predicted is not made up for by those
        # behind it, and of what has ended nothing is left.
        most_s = sum(peer.open_s)
        least_s = most_s - peer.open_s[0] if peer.open_s else 0.0
        peer.left_s = min(max(least_s, old_s + peer.new_s), most_s)
        peer.looked_at_s, peer.new_s = now, 0.0

    def _forget_one(self) -> None:
        if len(self._peer_by_worker) <= MAX_PEERS:
            return
        for worker_id, peer in self._peer_by_worker.items():
            if not peer.open_s:
                del self._peer_by_worker[worker_id]
                return
