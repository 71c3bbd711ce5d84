"""One generation without its I/O: both clients do what this says.

`begin` before every attempt, `receive` for every message, `fail` for every broken attempt, `end`
for a clean one. Time arrives as an argument, waiting is left to the caller.
"""

from collections.abc import Iterator

from tandemserve.api.v1 import inference_pb2
from tandemserve.errors import RequestCancelled
from tandemserve.replay import Replay
from tandemserve.results import Accepted, Completion, Event
from tandemserve.retry import Attempts
from tandemserve.rpc_errors import RpcFailure, error_from_rpc
from tandemserve.wire import events_from


class Generation:
    """A request, what has been delivered of its answers, and how often it may be tried again."""

    def __init__(
        self, request: inference_pb2.GenerateRequest, attempts: Attempts, target: str
    ) -> None:
        # Of the present attempt; a later one says what is there already.
        self.request = request
        # The router that the present attempt goes to; for errors.
        self.target = target
        self._attempts = attempts
        self._replay = Replay(request.request_id, request.n or 1)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def accepted(self) -> Accepted | None:
        """None until the server has answered."""
        return self._replay.accepted

    def begin(self, now: float, target: str) -> float | None:
        """Start an attempt at a router and return its deadline in seconds, None for none.

        Raises: DeadlineExceeded.
        """
        timeout_s = self._attempts.remaining_s(now, self.request_id)
        self.target = target
        if self._replay.has_news:
            # Another router, or the same after a restart, goes on from there.
            self.request.resume.CopyFrom(self._resume())
        self._replay.begin_attempt()
        return timeout_s

    def _resume(self) -> inference_pb2.Resume:
        resume = inference_pb2.Resume()
        accepted = self._replay.accepted
        if accepted is not None:
            resume.seed = accepted.seed
            if accepted.max_tokens:
                resume.max_tokens = accepted.max_tokens
        for index, token_ids, is_finished in self._replay.received():
            if token_ids or is_finished:
                resume.choices.add(index=index, token_ids=token_ids, is_finished=is_finished)
        return resume

    def receive(self, response: inference_pb2.GenerateResponse) -> Iterator[Event]:
        """The news in a message, to be taken before the next message.

        Raises: ProtocolViolation, behind the news that came before it.
        """
        for event in events_from(response):
            news = self._replay.receive(response.request_id, event)
            if news is not None:
                self._attempts.progressed()
                yield news

    def fail(self, failure: RpcFailure, now: float) -> float | None:
        """Seconds to wait before the next attempt; None when nothing is missing any more.

        Raises: the failure as a TandemError, when there shall be no further attempt.
        """
        if self._replay.is_complete:
            return None
        error = error_from_rpc(failure, target=self.target, request_id=self.request_id)
        return self._attempts.delay_after(error, now)

    def end(self) -> None:
        """The server closed the stream in order.

        Raises: ProtocolViolation when an answer is not complete.
        """
        self._replay.end()

    def completion(self) -> Completion:
        """All answers as one value.

        Raises: ProtocolViolation when an answer is not complete.
        """
        return self._replay.completion()

    def cancelled(self) -> RequestCancelled:
        """What the reader of a stream gets that was cancelled on this side."""
        return RequestCancelled(
            "the request was cancelled by this client; send it again with a new request id",
            request_id=self.request_id,
        )
