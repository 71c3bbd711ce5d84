"""For tests: a simulated cluster whose router is recorded."""

import io
import random
from collections.abc import Sequence

from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.core_setup import CoreSetup
from router.events import Action, Event
from router.recording.entries import ENDED, event_line, head_line, last_line, outcome_of
from router.recording.file import GzipLines
from router.recording.testing import head_of
from router.recording.values import Encoder
from runtime.clock import ManualClock
from scheduling.errors import TandemError
from simulator.testing import CheckedCluster


class RecordedCore(RouterCore):
    """Writes all that it is told, as the router's process does."""

    def __init__(self, setup: CoreSetup) -> None:
        policy = setup.new_policy()
        super().__init__(policy, policy.new_predictor(), setup.settings)
        self._file = io.BytesIO()
        self._lines = GzipLines(self._file)
        self._lines.write(head_line(head_of(setup)))
        self._num_events = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `RouterCore`."""
        try:
            actions = super().handle(event, now)
        except TandemError as error:
            self._note(event, now, error)
            raise
        self._note(event, now, actions)
        return actions

    def recording(self) -> bytes:
        """The whole file; nothing is recorded any more."""
        self._lines.write(last_line(ENDED))
        self._lines.close()
        return self._file.getvalue()

    def _note(self, event: Event, now: float, result: Sequence[Action] | Exception) -> None:
        self._num_events += 1
        outcome = outcome_of(result, Encoder(is_abridging=True))
        plain = Encoder().plain(event)
        self._lines.write(event_line(self._num_events, now, plain, outcome))


def recorded_cluster(
    seed: int, setup: CoreSetup, num_blocks: int, worker_ids: Sequence[str]
) -> tuple[CheckedCluster, RecordedCore]:
    """Small workers and random delays; ids are ROLE-NUMBER."""
    core = RecordedCore(setup)
    cluster = CheckedCluster(
        core,
        MemoryLedger(ManualClock()),
        random.Random(seed),
        num_swap_blocks=20,
        policy=setup.new_policy(),
    )
    for worker_id in worker_ids:
        cluster.start_worker(worker_id, worker_id.partition("-")[0], num_blocks)
    return cluster, core
