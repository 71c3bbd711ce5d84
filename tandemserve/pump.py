"""Runs blocking gRPC calls on threads of their own, out of the way of Ctrl-C.

Python raises KeyboardInterrupt in the main thread at any bytecode, also between the lines of
gRPC's and threading's locking, and a lock left behind there stops every later call. So the main
thread waits in SimpleQueue only, which is written in C and cannot be left half-way, and starts
threads without threading.Thread, whose `start` waits for the new thread with a lock of Python's.
"""

import _thread
import os
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar, cast

import grpc

from tandemserve.errors import ClientClosed
from tandemserve.generation import Generation
from tandemserve.results import Event
from tandemserve.rpc_errors import RpcFailure
from tandemserve.settings import closed_error

if TYPE_CHECKING:
    from tandemserve.connection import Connection, ResponseStream

T = TypeVar("T")

# How many events may lie ready; beyond that gRPC's flow control slows the server down.
_MAX_READY_EVENTS = 64
# How late Ctrl-C may be noticed where the system does not interrupt a wait.
_SIGNAL_CHECK_S = 0.2


class Waiter:
    """A wait that `wake` ends, from any thread and for good."""

    def __init__(self, sleep: Callable[[float], object] | None) -> None:
        self._sleep = sleep
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self.is_woken = False

    def wake(self) -> None:
        self.is_woken = True
        self._wakes.put(None)

    def wait(self, seconds: float) -> None:
        """One thread waits at a time."""
        if self._sleep is not None:
            self._sleep(seconds)
            return
        try:
            self._wakes.get(timeout=seconds)
        except Empty:
            return


def run_aside(perform: Callable[[], T]) -> T:
    """The result of a blocking call; Ctrl-C leaves it to end by itself."""
    outcomes: SimpleQueue[T | _Raised] = SimpleQueue()

    def run() -> None:
        try:
            outcomes.put(perform())
        except BaseException as error:  # raised again by the waiting thread
            outcomes.put(_Raised(error))

    _thread.start_new_thread(run, ())
    outcome = _get(outcomes)
    if isinstance(outcome, _Raised):
        raise outcome.error
    return outcome


def _get(queue: "SimpleQueue[T]") -> T:
    """Wait for an item, and notice a signal that came just before the wait began."""
    while True:
        try:
            return queue.get(timeout=_SIGNAL_CHECK_S)
        except Empty:
            continue


class _Raised:
    """An exception on its way to another thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Pump:
    """Performs one generation and keeps a bounded number of events ready."""

    def __init__(self, connection: "Connection", generation: Generation) -> None:
        self._connection = connection
        self._generation = generation
        self._waiter = Waiter(connection.sleep)
        self._call: ResponseStream | None = None
        # Of the newest message, what was not taken yet.
        self._news: Iterator[Event] = iter(())
        self._pid = os.getpid()
        # None is the end. One credit is one event that may be made ready.
        self._events: SimpleQueue[Event | _Raised | None] = SimpleQueue()
        self._credits: SimpleQueue[None] = SimpleQueue()
        for _ in range(_MAX_READY_EVENTS):
            self._credits.put(None)
        _thread.start_new_thread(self._run, ())

    def take(self) -> Event | None:
        """Wait for the next event; None at the end. Raises: TandemError."""
        if self._pid != os.getpid():
            raise ClientClosed("the stream belongs to the parent process; make a new client here")
        item = _get(self._events)
        self._credits.put(None)
        if isinstance(item, _Raised):
            raise item.error
        return item

    def cancel(self) -> None:
        """End the call from any thread; harmless when it has ended."""
        self._waiter.wake()
        self._credits.put(None)
        # Either the call is seen here, or `_start` sees that the waiter was woken.
        call = self._call
        if call is not None and self._pid == os.getpid():
            call.cancel()

    def _run(self) -> None:
        try:
            self._start()
            while (event := self._advance()) is not None:
                self._credits.get()
                if self._waiter.is_woken:
                    raise self._generation.cancelled()
                self._events.put(event)
            self._events.put(None)
        except BaseException as error:  # raised again by the reading thread
            if self._call is not None:
                self._call.cancel()
            self._events.put(_Raised(error))

    def _start(self) -> None:
        target = self._connection.route.target
        timeout_s = self._generation.begin(self._connection.settings.now(), target)
        self._call = self._connection.generate(self._generation.request, timeout_s, target)
        if self._waiter.is_woken:
            self._call.cancel()

    def _advance(self) -> Event | None:
        """The next event; None at the end."""
        while True:
            event = next(self._news, None)
            if event is not None:
                return event
            try:
                response = next(cast("ResponseStream", self._call))
            except StopIteration:
                self._generation.end()
                return None
            except grpc.RpcError as failure:
                if not self._recover(cast(RpcFailure, failure)):
                    return None
                continue
            self._news = self._generation.receive(response)

    def _recover(self, failure: RpcFailure) -> bool:
        """Wait and start another attempt; False when none is needed. Raises: TandemError."""
        self._raise_if_left()
        delay_s = self._generation.fail(failure, self._connection.settings.now())
        if delay_s is None:
            return False
        self._connection.route.leave(self._generation.target)
        self._waiter.wait(delay_s)
        self._raise_if_left()
        self._start()
        return True

    def _raise_if_left(self) -> None:
        if self._waiter.is_woken:
            raise self._generation.cancelled()
        if self._connection.is_closed:
            raise closed_error()
