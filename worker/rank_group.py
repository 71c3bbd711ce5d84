"""The other ranks of a worker, as rank 0 sees them: started, told what to do, watched.

Rank 0 is the worker's own process, with its core and its sessions. Each other rank is a child
process (worker/rank_process.py) that holds a share of the model and of the KV, and makes the calls
that rank 0 makes, in the same order. A rank that ends takes the worker with it, and the other way
round.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from engine.rank_exchange import DistributedExchange
from engine.runner import RankLost
from runtime.bound_child import bound_to_this_process
from runtime.errors import StartupError
from runtime.logging import get_logger
from runtime.worker_config import PrefillConfig, WorkerConfig
from scheduling.kv_export import KvExport
from scheduling.worker_events import ExpectKv, KvAction, WorkerEvent
from worker.engine_loading import device_of_rank
from worker.rank_channel import RankChannel
from worker.rank_messages import (
    START_TIMEOUT_S,
    KvExpected,
    KvHappened,
    PoolMade,
    PoolSize,
    RankCall,
    RankCalls,
    RankFailed,
    RankLoaded,
    RankSpec,
    RankStarted,
    public_settings,
)

log = get_logger()

# Until a process has loaded its share after rank 0 has.
_LOAD_TIMEOUT_S = 600.0
# The way to a rank breaks a moment before its status is known.
_STATUS_TIMEOUT_S = 1.0
# After which those that do not end by themselves are killed.
_END_TIMEOUT_S = 5.0
# Calls that wait for the next step; they are short.
_MAX_WAITING_CALLS = 256

_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True)
class _Follower:
    rank: int
    process: subprocess.Popen[bytes]
    channel: RankChannel

    def ending(self) -> str | None:
        """How it ended; None while it runs."""
        try:
            status = self.process.wait(timeout=_STATUS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class RankGroup:
    """Used by the thread that starts the worker and then by the engine thread alone."""

    def __init__(self, config: WorkerConfig) -> None:
        """Start the processes; on the main thread, whose end they shall not outlive."""
        self.size = config.tensor_parallel_size
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="tandem-ranks-"))
        self._followers = [_start(rank, config.engine_stall_s) for rank in range(1, self.size)]
        self._waiting: list[RankCall] = []
        # What each has told and nobody asked for yet.
        self._told: list[list[WorkerEvent]] = [[] for _ in self._followers]
        # Why the ranks can compute nothing more.
        self.loss: RankLost | None = None
        # See `watch`.
        self._on_loss: Callable[[], None] = lambda: None
        self._wake_reader, self._wake_writer = os.pipe()
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the other ranks, rank 1 first."""
        return tuple(follower.process.pid for follower in self._followers)

    def begin(self, incarnation: int, num_threads: int) -> DistributedExchange:
        """Tell the ranks what to load, and meet them. Raises: StartupError."""
        config, meeting_place = self._config, self._folder / "meeting"
        settings = public_settings(config)
        process: Literal["prefill", "decode"] = (
            "prefill" if isinstance(config, PrefillConfig) else "decode"
        )
        exchange = DistributedExchange(
            0,
            self.size,
            torch.device(device_of_rank(config.device, 0)),
            config.engine_stall_s,
            config.tensor_parallel_reduce,
        )
        with self.losses_end_the_start():
            for follower in self._followers:
                spec = RankSpec(
                    process,
                    settings,
                    follower.rank,
                    incarnation,
                    num_threads,
                    str(meeting_place),
                    config.engine_stall_s,
                )
                follower.channel.send(spec)
            for follower in self._followers:
                _expect(follower, RankStarted, START_TIMEOUT_S)
            exchange.join(meeting_place, START_TIMEOUT_S)
        return exchange

    def watch(self, on_loss: Callable[[], None]) -> None:
        """Call this, on a thread of its own, when a rank is lost.

        Raises: RankLost where one is already: nobody was told of that.
        """
        self._on_loss = on_loss
        self.require_all()

    @contextmanager
    def losses_end_the_start(self) -> Iterator[None]:
        """Raises: StartupError, in one line, where the block raises RankLost."""
        try:
            yield
        except RankLost as error:
            raise StartupError(str(self.loss_after(error))) from error

    def agree_on_blocks(self, arithmetic: str, num_blocks: int) -> int:
        """Wait until every rank has loaded: KV blocks that all have room for. Raises: StartupError.

        Of rank 0: its `ModelRunner.arithmetic`, and what it has room for.
        """
        with self.losses_end_the_start():
            for follower in self._followers:
                loaded = _expect(follower, RankLoaded, _LOAD_TIMEOUT_S)
                if loaded.arithmetic != arithmetic:
                    raise StartupError(
                        f"rank {follower.rank} computes with {loaded.arithmetic} and rank 0 with "
                        f"{arithmetic}; run all ranks on processors of one kind"
                    )
                num_blocks = min(num_blocks, loaded.num_blocks)
        return num_blocks

    def make_pools(self, num_blocks: int, num_swap_blocks: int) -> tuple[KvExport, ...]:
        """Have the other ranks, all loaded, make their pools. Raises: StartupError.

        These, rank 1 first, where others may push into them.
        """
        pool = PoolSize(num_blocks, num_swap_blocks)
        exports: list[KvExport] = []
        with self.losses_end_the_start():
            for follower in self._followers:
                follower.channel.send(pool)
            for follower in self._followers:
                export = _expect(follower, PoolMade, _LOAD_TIMEOUT_S).export
                exports += [] if export is None else [export]
        shutil.rmtree(self._folder, ignore_errors=True)
        return tuple(exports)

    def tell(self, call: RankCall) -> None:
        """Have every other rank make this call, at the latest before the next step."""
        self._waiting.append(call)
        if len(self._waiting) >= _MAX_WAITING_CALLS:
            self.tell_waiting()

    def tell_waiting(self) -> None:
        """Send what waits. Raises: RankLost."""
        calls, self._waiting = RankCalls(tuple(self._waiting)), []
        for follower in self._followers if calls.calls else ():
            self._send(follower, calls)

    def perform_on_all(self, action: KvAction) -> None:
        """Have every other rank do this with its KV, at once. Raises: RankLost."""
        self.tell(action)
        self.tell_waiting()
        if isinstance(action, ExpectKv):
            for follower in self._followers:
                self._wait_expected(follower)

    def perform_on(self, rank: int, action: KvAction) -> None:
        """The same of one other rank. Raises: RankLost."""
        self.tell_waiting()
        self._send(self._followers[rank - 1], RankCalls((action,)))

    def poll_all(self) -> list[list[WorkerEvent]]:
        """What each other rank's KV side has told by now, rank 1 first. Raises: RankLost."""
        for follower in self._followers:
            while (message := self._received(follower, 0)) is not None:
                assert isinstance(message, KvHappened), "a rank answers only what it was asked"
                self._told[follower.rank - 1] += message.events
        told, self._told = self._told, [[] for _ in self._followers]
        return told

    def wait_told(self, timeout_s: float) -> None:
        """Until some rank has something to say, or is gone."""
        poller = select.poll()
        for follower in self._followers:
            poller.register(follower.channel.fileno(), select.POLLIN)
        poller.poll(1000 * timeout_s)

    def require_all(self) -> None:
        """Raises: RankLost once a rank is lost."""
        if self.loss is not None:
            raise self.loss

    def loss_after(self, error: Exception) -> RankLost:
        """What to raise where `error` ended a call that all ranks make; the worker is to end."""
        for follower in self._followers:
            # Said before its exchange ends; the process itself may take seconds to end.
            if (reason := _last_words(follower)) is not None:
                return RankLost(f"rank {follower.rank}: {reason}")
        for follower in self._hung_up(_STATUS_TIMEOUT_S):
            if (reason := _last_words(follower)) is not None:
                return RankLost(f"rank {follower.rank}: {reason}")
            if (how := follower.ending()) is not None:
                return RankLost(_gone(follower, how))
        if isinstance(error, RankLost):
            return error
        return RankLost(
            f"rank 0 failed while the others computed ({type(error).__name__}: {error}); the "
            "worker ends, start it again"
        )

    def close(self) -> None:
        """End the other ranks, and wait until they are gone."""
        os.write(self._wake_writer, b"x")
        self._watcher.join(_END_TIMEOUT_S)
        for follower in self._followers:
            follower.channel.close()
        for follower in self._followers:
            try:
                follower.process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # Stopped, or stuck inside the kernel or a driver.
                follower.process.kill()
                follower.process.wait(_END_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _hung_up(self, timeout_s: float) -> list[_Follower]:
        """Those that have ended, or the first that do in this time."""
        poller = select.poll()
        by_fd = {follower.channel.fileno(): follower for follower in self._followers}
        for fd in by_fd:
            # Told of hang-ups alone.
            poller.register(fd, 0)
        return [by_fd[fd] for fd, _ in poller.poll(1000 * timeout_s)]

    def _wait_expected(self, follower: _Follower) -> None:
        """Before anyone hears of a grant, every rank has to take what comes by it."""
        while True:
            message = self._received(follower, self._config.engine_stall_s)
            if isinstance(message, KvExpected):
                return
            if not isinstance(message, KvHappened):
                raise self.loss_after(RankLost(f"rank {follower.rank} does not answer"))
            self._told[follower.rank - 1] += message.events

    def _received(self, follower: _Follower, timeout_s: float) -> object | None:
        try:
            message: object | None = follower.channel.receive(timeout_s)
        except RankLost as error:
            raise self.loss_after(error) from error
        if isinstance(message, RankFailed):
            raise RankLost(f"rank {follower.rank} failed: {message.message}")
        return message

    def _send(self, follower: _Follower, calls: RankCalls) -> None:
        try:
            follower.channel.send(calls)
        except RankLost as error:
            raise self.loss_after(error) from error

    def _watch(self) -> None:
        """Wait for the first rank that ends: while nobody computes, nothing else tells of it."""
        poller = select.poll()
        by_fd = {follower.channel.fileno(): follower for follower in self._followers}
        for fd in by_fd:
            # Told of hang-ups alone: messages are read by the thread that waits for them.
            poller.register(fd, 0)
        poller.register(self._wake_reader, select.POLLIN)
        for fd, _ in poller.poll():
            if fd == self._wake_reader:
                return
            follower = by_fd[fd]
            self.loss = RankLost(_gone(follower, follower.ending() or "has closed its end"))
            log.error("rank_lost", rank=follower.rank, error=str(self.loss))
            self._on_loss()
            return


@contextmanager
def rank_processes(config: WorkerConfig) -> Iterator[RankGroup | None]:
    """The other ranks inside the block; None for a worker of one. Raises: StartupError."""
    if config.tensor_parallel_size == 1:
        yield None
        return
    group = RankGroup(config)
    try:
        yield group
    finally:
        group.close()


def _start(rank: int, timeout_s: float) -> _Follower:
    ours, theirs = socket.socketpair()
    flags = ("-P",) if sys.flags.safe_path else ()
    number = str(theirs.fileno())
    command = (sys.executable, *flags, "-m", "worker.rank_process", number, repr(timeout_s))
    with theirs:
        process = subprocess.Popen(
            # A rank that is stopped, or inside a driver, has to go as well.
            bound_to_this_process(command, signal.SIGKILL),
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            # Ctrl-C is for rank 0, which drains first.
            start_new_session=True,
        )
    return _Follower(rank, process, RankChannel(ours, timeout_s))


def _expect(follower: _Follower, kind: type[_Message], timeout_s: float) -> _Message:
    """The next message. Raises: StartupError where the rank says why it cannot; RankLost."""
    message = follower.channel.receive(timeout_s)
    if isinstance(message, RankFailed):
        raise StartupError(f"rank {follower.rank}: {message.message}")
    if message is None:
        raise RankLost(f"rank {follower.rank} said nothing in {timeout_s:g} s")
    if not isinstance(message, kind):
        raise RankLost(f"rank {follower.rank} sent {type(message).__name__}, not {kind.__name__}")
    return message


def _last_words(follower: _Follower) -> str | None:
    """Why a rank cannot go on, where it said so and nobody has heard it yet."""
    try:
        while (message := follower.channel.receive(0)) is not None:
            if isinstance(message, RankFailed):
                return message.message
    except RankLost:
        # It ended without a word.
        return None
    return None


def _gone(follower: _Follower, how: str) -> str:
    return (
        f"rank {follower.rank} of this worker {how}; the worker ends and other workers take its "
        "tasks over; look for the reason above, then start it again"
    )
