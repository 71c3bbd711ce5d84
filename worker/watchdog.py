"""Notices what stands still: an engine that does not end its turn, a router that says nothing.

Runs on the event loop, so it cannot notice that the loop itself stands still; the routers do, by
the heartbeats that go unanswered.
"""

import asyncio
from dataclasses import dataclass

from runtime.clock import Clock
from runtime.health import LIVENESS, HealthBoard
from runtime.logging import get_logger
from runtime.silence import Silence
from worker.engine_pulse import EnginePulse, Pulse
from worker.session import SERVICE_NAME, WorkerSessions

log = get_logger()

# Sessions and the engine are looked at this often.
LOOK_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class StallSettings:
    """How long one turn of the engine may take, in seconds."""

    base_s: float
    # On top, for each token that the turn computes.
    per_token_s: float


class EngineWatch:
    """Says when a turn takes too long. Pure: time and pulse are arguments."""

    def __init__(self, settings: StallSettings, now: float) -> None:
        self._settings = settings
        self._silence = Silence(LOOK_INTERVAL_S, settings.base_s, now)
        self._num_turns = -1

    @property
    def silent_s(self) -> float:
        """How long the present turn has been seen to last."""
        return self._silence.silent_s

    def is_stuck(self, pulse: Pulse, now: float) -> bool:
        """To be asked every interval; time in which this process was stopped does not count."""
        if pulse.is_waiting or pulse.num_turns != self._num_turns:
            self._silence.heard()
        self._num_turns = pulse.num_turns
        settings = self._settings
        self._silence.limit_s = settings.base_s + settings.per_token_s * pulse.num_tokens
        return self._silence.look(now)


class Watchdog:
    """One for each worker; `run` until cancelled."""

    def __init__(
        self,
        sessions: WorkerSessions,
        pulse: EnginePulse,
        health: HealthBoard,
        settings: StallSettings,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._pulse = pulse
        self._health = health
        self._clock = clock
        self._watch = EngineWatch(settings, clock.now())
        self.is_stuck = False

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Give up silent routers; tell everybody about a stuck engine, and when it goes on."""
        now = self._clock.now()
        self._sessions.end_silent(now)
        was_stuck, self.is_stuck = self.is_stuck, self._watch.is_stuck(self._pulse.now(), now)
        if self.is_stuck and not was_stuck:
            why = (
                f"the engine has not ended its turn for {self._watch.silent_s:.0f} s; look at the "
                "worker's log, and restart it if this does not pass"
            )
            log.error("engine_stuck", problem=why)
            self._set_healthy(False)
            self._sessions.close_doors(why)
        elif was_stuck and not self.is_stuck:
            log.warning("engine_goes_on")
            self._sessions.open_doors()
            self._set_healthy(not self._sessions.is_draining)

    def _set_healthy(self, is_healthy: bool) -> None:
        # An orchestrator restarts what is not live, and sends nothing to what is not ready.
        self._health.set_ready(LIVENESS, is_healthy or not self.is_stuck)
        self._health.set_ready(SERVICE_NAME, is_healthy)
