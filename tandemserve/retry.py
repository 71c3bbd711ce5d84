"""When a failed call is made again, and after how long. Pure: the callers wait.

Every call may be repeated: queries only read, and `Generate` is idempotent by request id. So the
question is only whether repeating can help, and whether the deadline leaves room for it.
"""

import random
from dataclasses import dataclass

from tandemserve.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    NoWorkerAvailable,
    QueueFull,
    StaleIncarnation,
    TandemError,
)

# A router that is gone, starts or stops: it or another one serves again within seconds, and a try
# costs nobody any work.
_ROUTER_GONE = (ConnectionFailed, NoWorkerAvailable, StaleIncarnation)
# Failures that pass by themselves. Others are made again only where the server names a delay: the
# cluster has already tried WorkerFailed and KvCorrupted again, and each trial costs GPU work.
_TRANSIENT = (*_ROUTER_GONE, QueueFull)
# Tries after a failure in a row of other kinds.
_MAX_OTHER_RETRIES = 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Delays are drawn from [d/2, d] with d doubling up to a cap."""

    # After this many failures in a row without a new token the error is raised. None: routers that
    # are gone are waited for as long as `retry_for_s`, other failures are tried again twice.
    max_retries: int | None = None
    # Since the first failure in a row; a router restarts within a few seconds.
    retry_for_s: float = 10.0
    # The same once something of the answer has arrived, which is worth more patience than a first
    # word; None: no more.
    resume_for_s: float | None = None
    first_delay_s: float = 0.2
    max_delay_s: float = 2.0
    # A server that asks for a longer wait is not waited for; the caller decides. Where it has no
    # workers, it is asked again for as long as `retry_for_s`, however long they may take.
    max_retry_after_s: float = 30.0


class Attempts:
    """Counts the attempts of one call and decides after each failure."""

    def __init__(
        self,
        policy: RetryPolicy,
        rng: random.Random,
        *,
        timeout_s: float | None,
        now: float,
        num_others: int = 0,
    ) -> None:
        self._policy = policy
        self._rng = rng
        self._timeout_s = timeout_s
        self._deadline_s = None if timeout_s is None else now + timeout_s
        # Routers besides the one that failed first: each is tried at once.
        self._num_others = num_others
        self._num_failures = 0
        self._retry_for_s = policy.retry_for_s
        # Of the present row of failures: when it began, and for how long was waited in all.
        self._failing_since_s = now
        self._waited_s = 0.0
        # What a router said of itself in that row: why the next ones cannot be reached.
        self._told: TandemError | None = None

    def remaining_s(self, now: float, request_id: str | None = None) -> float | None:
        """The deadline of the next attempt; None for no limit.

        Raises: DeadlineExceeded when nothing is left.
        """
        if self._deadline_s is None:
            return None
        remaining_s = self._deadline_s - now
        if remaining_s <= 0:
            raise DeadlineExceeded(
                f"no complete answer within {self._timeout_s} s; raise timeout_s",
                request_id=request_id,
            )
        return remaining_s

    def progressed(self) -> None:
        """Something new arrived, so the next failure is a first one again."""
        self._num_failures = 0
        self._waited_s = 0.0
        self._told = None
        if self._policy.resume_for_s is not None:
            self._retry_for_s = self._policy.resume_for_s

    def delay_after(self, error: TandemError, now: float) -> float:
        """Seconds to wait before the next attempt.

        Raises: the error itself when another attempt is not safe, not useful or not in time.
        """
        policy = self._policy
        asked_s = error.retry_after_s
        if asked_s is None and not isinstance(error, _TRANSIENT):
            raise error
        if self._num_failures == 0:
            self._failing_since_s = now
        if isinstance(error, _ROUTER_GONE) and not isinstance(error, ConnectionFailed):
            self._told = error
        is_gone = isinstance(error, _ROUTER_GONE)
        if self._is_enough(error):
            raise self._reason(error)
        if not is_gone and (asked_s or 0.0) > policy.max_retry_after_s:
            raise error
        delay_s = self._draw_delay(error, asked_s)
        if is_gone and asked_s is not None and self._is_too_long(error, now, delay_s):
            # For so long it was away the last time: it is asked on, since it may be back sooner.
            delay_s = self._draw_delay(error, None)
        if self._is_too_long(error, now, delay_s):
            raise self._reason(error)
        self._num_failures += 1
        # Also by callers whose clock stands still while they wait.
        self._waited_s += delay_s
        return delay_s

    def _reason(self, error: TandemError) -> TandemError:
        """What to tell: a router that said why it goes away is not at a wrong address."""
        is_silence = isinstance(error, ConnectionFailed)
        return self._told if is_silence and self._told is not None else error

    def _is_enough(self, error: TandemError) -> bool:
        most = self._policy.max_retries
        if most is None:
            if isinstance(error, _ROUTER_GONE):
                return False
            most = _MAX_OTHER_RETRIES
        return self._num_failures >= most

    def _is_too_long(self, error: TandemError, now: float, delay_s: float) -> bool:
        """Whether this wait would end after the deadline, or after what the policy waits for."""
        if self._deadline_s is not None and now + delay_s >= self._deadline_s:
            return True
        return isinstance(error, _ROUTER_GONE) and self._is_impatient(now, delay_s)

    def _is_impatient(self, now: float, delay_s: float) -> bool:
        """Whether all routers have failed, and this wait would end after the last moment."""
        waited_s = max(self._waited_s, now - self._failing_since_s) + delay_s
        return self._num_failures >= self._num_others and waited_s > self._retry_for_s

    def _draw_delay(self, error: TandemError, asked_s: float | None) -> float:
        policy, jitter = self._policy, self._rng.uniform(0.5, 1.0)
        if self._num_failures < self._num_others and isinstance(error, _TRANSIENT):
            # Another router was not asked yet; only, not everybody runs there at the same moment.
            return policy.first_delay_s / 4 * jitter
        num_rounds = max(0, self._num_failures - self._num_others)
        ceiling_s = min(policy.max_delay_s, policy.first_delay_s * 2.0 ** min(num_rounds, 30))
        # The asked delay is a minimum; the jitter on top keeps clients apart.
        return ceiling_s * jitter + (asked_s or 0.0)
