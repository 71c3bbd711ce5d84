from pathlib import Path

import pytest
import structlog
import torch

from engine.attention.choice import AttentionUnavailable
from engine.native.library import KernelsNotBuilt, KernelsNotLoaded
from engine.row_tiles import NoCommonRowCount
from kvtransfer.protocol import BlockMoves
from kvtransfer.testing import PATIENCE_S, patterned_pool
from runtime.errors import StartupError
from runtime.worker_config import PrefillConfig
from worker.engine_loading import engine_errors_in_one_line
from worker.transports import transports_of


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (NoCommonRowCount(), "another build of torch"),
        (KernelsNotBuilt("cc", "no memory"), "--attention torch"),
        (KernelsNotLoaded("noexec"), "--attention torch"),
        (AttentionUnavailable("native", "no compiler", "install gcc"), "install gcc"),
    ],
)
def test_a_machine_that_cannot_compute_ends_the_start_with_one_line_and_a_remedy(
    error: Exception, remedy: str
) -> None:
    with pytest.raises(StartupError, match=remedy) as caught, engine_errors_in_one_line():
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_nccl_without_a_gpu_ends_the_start_and_gloo_does_not() -> None:
    with pytest.raises(StartupError, match="it needs a CUDA device; take nccl out of transports"):
        transports_of(_prefill_with("nccl", "tcp"))
    assert list(transports_of(_prefill_with("gloo", "tcp"))) == ["gloo", "tcp"]


def _prefill_with(*transports: str) -> PrefillConfig:
    return PrefillConfig.model_validate({"model": Path("/nowhere"), "transports": transports})


@pytest.mark.parametrize(
    ("setting", "verdicts"), [("auto", ["it copies all the same"]), ("never", [])]
)
def test_kv_is_sent_without_a_copy_only_where_the_settings_let_it_try(
    setting: str, verdicts: list[str]
) -> None:
    config = PrefillConfig.model_validate(
        {"model": Path("/nowhere"), "transports": ("tcp",), "kv_tcp_zerocopy": setting}
    )
    transport = transports_of(config)["tcp"]
    receiver = transport.create_receiver(1, 1 << 20, "decode-0", 1)
    with structlog.testing.capture_logs() as lines:
        sender = transport.connect(receiver.export(), sender_id="p", block_bytes=1 << 20)
        for generation in (1, 2):
            receiver.expect([0], [generation])
            moves = BlockMoves("r/0", (0,), (0,), (generation,))
            sender.push(memoryview(patterned_pool(1, 1 << 20, 1)), moves, timeout_s=PATIENCE_S)
            assert receiver.poll([0], [generation]).is_complete
        sender.close()
    receiver.close()
    assert [line["verdict"] for line in lines if line["event"] == "kv_tcp_zerocopy"] == verdicts
