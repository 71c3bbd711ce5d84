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

# Failures that pass by themselves. WorkerFailed and KvCorrupted are left to the caller: the
# cluster has already tried those again, and each trial costs GPU work.
_TRANSIENT = (ConnectionFailed, NoWorkerAvailable, QueueFull, StaleIncarnation)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Delays are drawn from [d/2, d] with d doubling up to a cap."""

    # After this many failures in a row without a new token the error is raised.
    max_retries: int = 2
    first_delay_s: float = 0.2
    max_delay_s: float = 5.0
    # A server that asks for a longer wait is not waited for; the caller decides.
    max_retry_after_s: float = 30.0


class Attempts:
    """Counts the attempts of one call and decides after each failure."""

    def __init__(
        self, policy: RetryPolicy, rng: random.Random, *, timeout_s: float | None, now: float
    ) -> None:
        self._policy = policy
        self._rng = rng
        self._timeout_s = timeout_s
        self._deadline_s = None if timeout_s is None else now + timeout_s
        self._num_failures = 0

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

    def delay_after(self, error: TandemError, now: float) -> float:
        """Seconds to wait before the next attempt.

        Raises: the error itself when another attempt is not safe, not useful or not in time.
        """
        policy = self._policy
        asked_s = error.retry_after_s
        if asked_s is None and not isinstance(error, _TRANSIENT):
            raise error
        if self._num_failures >= policy.max_retries or (asked_s or 0.0) > policy.max_retry_after_s:
            raise error
        ceiling_s = min(policy.max_delay_s, policy.first_delay_s * 2.0**self._num_failures)
        # The asked delay is a minimum; the jitter on top keeps clients apart.
        delay_s = ceiling_s * self._rng.uniform(0.5, 1.0) + (asked_s or 0.0)
        if self._deadline_s is not None and now + delay_s >= self._deadline_s:
            raise error
        self._num_failures += 1
        return delay_s
