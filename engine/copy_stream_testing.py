"""A fake stream on the CPU: copies run as late as a real stream might run them."""

from collections import deque
from collections.abc import Sequence

from torch import Tensor

from engine.copy_stream import CopyTicket


class FakeCopyTicket:
    """Runs when the stream comes to it."""

    copy_s = 0.001

    def __init__(self, stream: "FakeCopyStream", pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._stream = stream
        self._pairs = pairs
        self._is_done = False

    def is_done(self) -> bool:
        return self._is_done

    def wait(self) -> None:
        self._stream.run_until(self)

    def run(self) -> None:
        """Copy now."""
        for source, target in self._pairs:
            target.copy_(source)
        self._is_done = True


class FakeCopyStream:
    """Nothing is copied before the test, or somebody who waits, lets the stream go on."""

    def __init__(self) -> None:
        self._waiting: deque[FakeCopyTicket] = deque()

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> FakeCopyTicket:
        ticket = FakeCopyTicket(self, pairs)
        self._waiting.append(ticket)
        return ticket

    def hold_compute(self, ticket: CopyTicket) -> None:
        # What is computed is computed at once here.
        ticket.wait()

    def advance(self) -> None:
        """Run the copies that were asked for first."""
        if self._waiting:
            self._waiting.popleft().run()

    def run_until(self, ticket: FakeCopyTicket) -> None:
        """Run everything up to these copies."""
        while not ticket.is_done():
            self.advance()
