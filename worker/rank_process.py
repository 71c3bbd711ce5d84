"""python -m worker.rank_process FD TIMEOUT_S: a rank of a worker that is not the first.

Started by rank 0 (worker/rank_group.py), which holds the other end of the socket FD. It makes the
calls that come from there and ends when the socket does: nobody else needs it, and nothing of it
outlives rank 0.
"""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from engine.model_runner import ModelRunner
from engine.rank_exchange import DistributedExchange
from engine.runner import RankLost
from kvtransfer.errors import DeviceFailed, ExportUnavailable
from runtime.errors import StartupError
from runtime.logging import configure_logging, get_logger
from scheduling.ids import Incarnation
from scheduling.kv_export import KvExport
from scheduling.step import SequenceStart, StepPlan
from scheduling.worker_events import (
    DropSequence,
    ExpectKv,
    ExtendSequence,
    ReplaceBlocks,
)
from worker.engine_loading import device_of_rank, load_engine
from worker.engine_loop import KvSide
from worker.kv_room import room_of_rank
from worker.rank_channel import RankChannel
from worker.rank_messages import (
    START_TIMEOUT_S,
    KvExpected,
    KvHappened,
    PeerIntroduced,
    PoolMade,
    PoolSize,
    RankCall,
    RankCalls,
    RankFailed,
    RankLoaded,
    RankSpec,
    RankStarted,
    TokensSampled,
)
from worker.rank_transfer import RankPlace, push, receive
from worker.transports import transports_of

log = get_logger()

# How often the KV side is looked at while nothing else is to do.
_POLL_S = 0.0005
# For what a KV side does at its end; after which a rank without its worker ends in any case.
_CLOSE_TIMEOUT_S, _END_WAIT_S = 1.0, 3.0


def main(fd: int, timeout_s: float) -> int:
    """Serve rank 0 until it ends, and return the exit code."""
    # Rank 0 is asked to end, and drains; then it ends its ranks.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=fd)
    threading.Thread(target=_end_with, args=(fd,), name="rank-0-watch", daemon=True).start()
    channel = RankChannel(end, timeout_s)
    try:
        _serve(channel)
    except RankLost as error:
        # Rank 0 knows, or is the one that has ended: nothing to warn of.
        log.info("rank_ending", reason=str(error))
    except Exception as error:  # the one broad catch of the process: whatever it is, rank 0 goes on
        if not isinstance(error, StartupError):
            log.exception("rank_failed")
        # Rank 0 may have ended of the same.
        with suppress(RankLost):
            channel.send(RankFailed.of(error))
    return 1


def _end_with(fd: int) -> None:
    """End this process when the other side of the socket does, whatever is being computed."""
    poller = select.poll()
    # Told of a hang-up alone: messages are read elsewhere.
    poller.register(fd, 0)
    poller.poll()
    # The other thread notices as well, and gives back what outlives a process. Unless it computes.
    threading.Event().wait(_END_WAIT_S)
    os._exit(1)


def _serve(channel: RankChannel) -> None:
    """Load, then follow. Raises: RankLost, StartupError."""
    spec = channel.receive(None)
    assert isinstance(spec, RankSpec), "rank 0 begins with it"
    config = spec.config()
    configure_logging(
        config.process,
        log_format=config.log_format,
        level=config.log_level,
        ids={"worker_id": config.worker_id, "rank": str(spec.rank)},
    )
    torch.set_num_threads(spec.num_threads)
    if config.device == "cuda":
        torch.cuda.set_device(spec.rank)
    channel.send(RankStarted())
    device = device_of_rank(config.device, spec.rank)
    exchange = DistributedExchange(
        spec.rank,
        config.tensor_parallel_size,
        torch.device(device),
        spec.timeout_s,
        config.tensor_parallel_reduce,
    )
    exchange.join(Path(spec.meeting_place), START_TIMEOUT_S)
    engine = load_engine(config, exchange)
    channel.send(RankLoaded(engine.arithmetic, room_of_rank(config, engine, spec.rank)))
    size = channel.receive(None)
    assert isinstance(size, PoolSize), "rank 0 goes on with it"
    place = RankPlace(
        config,
        Incarnation(spec.incarnation),
        engine.layout,
        size.num_blocks,
        transports_of(config, spec.rank),
        engine.slices,
        spec.rank,
    )
    try:
        made = push(place) if spec.process == "prefill" else receive(place, size.num_swap_blocks)
    except (ExportUnavailable, DeviceFailed) as error:
        raise StartupError(str(error)) from error
    try:
        runner = ModelRunner(
            engine.model, made.pool, config.max_num_seqs, engine.attention, made.before_pass
        )
        channel.send(PoolMade(made.export))
        log.info("rank_ready", num_blocks=size.num_blocks, arithmetic=engine.arithmetic)
        RankFollower(runner, made.kv, channel, made.prepare_peer).run()
    finally:
        made.close(_CLOSE_TIMEOUT_S)


class RankFollower:
    """Makes the calls of rank 0 on this rank's share."""

    def __init__(
        self,
        runner: ModelRunner,
        kv: KvSide,
        channel: RankChannel,
        prepare_peer: Callable[[KvExport], None] | None = None,
    ) -> None:
        """`prepare_peer`: where this worker pushes; see `RankTransfer`."""
        self._prepare_peer = prepare_peer
        self._runner = runner
        self._kv = kv
        self._channel = channel

    def run(self) -> None:
        """Until the channel ends. Raises: RankLost; whatever a call raises."""
        while True:
            message = self._channel.receive(_POLL_S if self._kv.is_polling else None)
            if message is not None:
                assert isinstance(message, RankCalls), "rank 0 sends nothing else from now on"
                for call in message.calls:
                    self._make(call)
            if events := self._kv.poll():
                self._channel.send(KvHappened(tuple(events)))

    def _make(self, call: RankCall) -> None:
        match call:
            case SequenceStart():
                self._runner.add(call)
            case ExtendSequence(slot, block_ids):
                self._runner.extend_blocks(slot, block_ids)
            case ReplaceBlocks(slot, first_index, block_ids):
                self._runner.replace_blocks(slot, first_index, block_ids)
            case DropSequence(slot):
                self._runner.remove(slot)
            case TokensSampled(slots, token_ids):
                self._runner.append(slots, token_ids)
            case PeerIntroduced(export):
                if self._prepare_peer is not None:
                    self._prepare_peer(export)
            case StepPlan():
                self._runner.follow(call)
            case _:
                self._kv.perform(call)
                if isinstance(call, ExpectKv):
                    self._channel.send(KvExpected())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
