"""A copy that is stuck where a pool's owner receives: what it holds, and that it is let go of."""

from collections.abc import Sequence

import pytest

from kvtransfer.batches import PushSettings
from kvtransfer.device import ByteRun, CopyStream, KvSource
from kvtransfer.device_testing import FakeDevice, FakePool, FakeStream
from kvtransfer.errors import ExportUnavailable, TransferError
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S, moves_of, next_incarnation, patterned_pool

NUM_BLOCKS, BLOCK_BYTES = 16, 512
CONTENT = bytes(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=8))


class _FailingStream(FakeStream):
    """Loses its device once it was given a copy into device memory."""

    def begin(self, target: KvSource, source: KvSource, runs: Sequence[ByteRun]) -> None:
        super().begin(target, source, runs)
        if isinstance(target, FakePool):
            self.failures.extend(["is_done"] * 100)


class _FailingDevice(FakeDevice):
    def new_stream(self) -> CopyStream:
        stream = _FailingStream(self._copy_bytes, is_manual=False)
        self.streams.append(stream)
        return stream


def test_a_stuck_copy_keeps_its_claim_though_the_connection_ends() -> None:
    good, bad = FakeDevice(), _FailingDevice()
    receiving = StagedTcpTransport(lambda: bad, settings=PushSettings(0.0))
    sending = StagedTcpTransport(lambda: good, settings=PushSettings(0.0))
    receiver = receiving.create_receiver(2, BLOCK_BYTES, "decode-0", next_incarnation())
    receiver.expect([0], [1])
    export = receiver.export()
    sender = sending.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
    with pytest.raises(TransferError):
        sender.push(
            sending.new_pool(CONTENT[:BLOCK_BYTES]), moves_of((0,), (0,)), timeout_s=PATIENCE_S
        )
    # Nobody who comes takes over its place, and the right to clear its claim with it.
    other = sending.connect(export, sender_id="prefill-1#1", block_bytes=BLOCK_BYTES)
    receiver.revoke([0])
    assert not receiver.quarantine_clear([0])
    assert receiver.quarantine_clear([1])
    # The device answers again: nothing is written any more, and what was held for it is let go.
    for stream in bad.streams:
        stream.failures.clear()
    assert receiver.quarantine_clear([0])
    assert all(pinned.is_closed for pinned in bad.pinned)
    for each in (sender, other):
        each.close()
    receiver.close()


@pytest.mark.parametrize("left", [[], ["close"]], ids=["well again", "never quite well again"])
def test_a_stuck_copy_that_has_ended_takes_no_senders_place(left: list[str]) -> None:
    good, bad = FakeDevice(), _FailingDevice()
    door, settings = DoorSettings(max_senders=1), PushSettings(0.0)
    receiver = StagedTcpTransport(lambda: bad, door, settings).create_receiver(
        2, BLOCK_BYTES, "decode-0", next_incarnation()
    )
    receiver.expect([0], [1])
    sending = StagedTcpTransport(lambda: good, settings=settings)
    export = receiver.export()
    sender = sending.connect(export, sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
    with pytest.raises(TransferError):
        sender.push(
            sending.new_pool(CONTENT[:BLOCK_BYTES]), moves_of((0,), (0,)), timeout_s=PATIENCE_S
        )
    sender.close()
    with pytest.raises(ExportUnavailable, match="as many senders as it takes"):
        sending.connect(export, sender_id="prefill-1#1", block_bytes=BLOCK_BYTES)
    for stream in bad.streams:
        stream.failures[:] = left
    sending.connect(export, sender_id="prefill-1#1", block_bytes=BLOCK_BYTES).close()
    assert left or all(pinned.is_closed for pinned in bad.pinned)
    for stream in bad.streams:
        stream.failures.clear()
    receiver.close()
