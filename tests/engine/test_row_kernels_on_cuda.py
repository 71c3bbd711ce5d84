"""FlashInfer's row kernels on a CUDA device beside torch's.

Run with: pytest -m gpu tests/engine/test_row_kernels_on_cuda.py. The first run may compile kernels.
"""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from engine.cuda_capture import CudaCapture
from engine.model_config import Activation
from engine.models.gated import choose_gated
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable, rotate
from engine.models.row_kernels import RowKernels
from engine.models.row_kernels_choice import choose_row_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("flashinfer") is None, reason="the package flashinfer is absent"),
]
DTYPES = (torch.bfloat16, torch.float16)
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# One, few, and more than the device has multiprocessors.
ROW_COUNTS = (1, 7, 700)


def kernels_for(dtype: torch.dtype) -> RowKernels:
    found = choose_row_kernels("flashinfer", dtype, torch.device("cuda"))
    assert found is not None
    return found


def assert_near(actual: Tensor, expected: Tensor, bound: float) -> None:
    """Within that share of a number, or of one."""
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def random_rows(num_rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator).to("cuda", dtype)


def norm_of(width: int, dtype: torch.dtype, is_offset: bool) -> RmsNorm:
    less_one = 0.3 * random_rows(1, width, dtype, 3)[0]
    return RmsNorm(less_one.float() + 1.0 if is_offset else less_one + 1.0, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_offset", [False, True])
@pytest.mark.parametrize("width", [64, 896, 4096, 14_336])
def test_norms(dtype: torch.dtype, is_offset: bool, width: int) -> None:
    norm = norm_of(width, dtype, is_offset)
    fused = kernels_for(dtype).norm(norm)
    assert fused is not None
    bound = 2 * ROUNDING[dtype]
    rows, added = (random_rows(700, width, dtype, seed) for seed in (1, 2))
    whole = fused(rows)
    assert_near(whole, norm(rows), bound)
    heads = random_rows(9, 3 * width, dtype, 4).view(9, 3, width)[:, :2]
    assert_near(fused(heads), norm(heads), bound)
    total = rows.clone()
    expected = norm.of_sum(total, added)
    for count in ROW_COUNTS:
        # No row depends on the number of rows.
        assert torch.equal(fused(rows[:count]), whole[:count])
        other = rows[:count].clone()
        normed = fused.of_sum(other, added[:count].clone())
        assert_near(normed, expected[:count], bound)
        assert torch.equal(other, total[:count])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [40, 4864, 14_336])
def test_gates(dtype: torch.dtype, activation: Activation, width: int) -> None:
    fused = kernels_for(dtype).gated(activation, width)
    assert fused is not None
    rows = 3 * random_rows(700, 2 * width, dtype, 5)
    whole, expected = fused(rows), choose_gated(activation)(rows)
    gate, up = rows.float().chunk(2, dim=1)
    # The device's tanh is within 2^-10.9; half of it counts.
    bound = 2 * ROUNDING[dtype] * expected.float().abs() + 2.0**-11 * (gate * up).abs() + 1e-6
    assert bool(((whole.float() - expected.float()).abs() <= bound).all())
    for count in ROW_COUNTS:
        assert torch.equal(fused(rows[:count]), whole[:count])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (128, 128), (128, 96), (256, 256)])
def test_rotation(dtype: torch.dtype, head_dim: int, rotary_dim: int) -> None:
    kernels = kernels_for(dtype)
    assert kernels.has_turn(head_dim, rotary_dim)
    angles = torch.outer(torch.arange(900.0), 1e-4 ** torch.linspace(0, 1, rotary_dim // 2)).cuda()
    table = RopeTable(angles.cos(), angles.sin())
    turn = kernels.turn(table, head_dim)
    fused = random_rows(700, 6 * head_dim, dtype, 6)
    positions = torch.arange(700, device="cuda").flip(0).contiguous()
    heads = fused.float().view(700, 6, head_dim)[:, :5]
    expected = rotate(heads, table.at(positions)).flatten(1)
    whole = fused.clone()
    turn(positions, whole[:, : 4 * head_dim], whole[:, 4 * head_dim : 5 * head_dim])
    bound = ROUNDING[dtype]
    assert_near(whole[:, : 5 * head_dim].float(), expected, bound)
    # Values stay as they are.
    assert torch.equal(whole[:, 5 * head_dim :], fused[:, 5 * head_dim :])
    for count in ROW_COUNTS:
        some = fused[:count].clone()
        turn(positions[:count], some[:, : 4 * head_dim], some[:, 4 * head_dim : 5 * head_dim])
        assert torch.equal(some, whole[:count])


def test_a_recording_replays_them() -> None:
    kernels, dtype = kernels_for(torch.bfloat16), torch.bfloat16
    norm, gated = kernels.norm(norm_of(256, dtype, is_offset=False)), kernels.gated("silu", 128)
    assert norm is not None
    assert gated is not None
    rows, out = random_rows(5, 256, dtype, 1), torch.zeros(5, 128, device="cuda", dtype=dtype)

    def work() -> None:
        out.copy_(gated(norm(rows)))

    replay = CudaCapture(torch.device("cuda")).record(work)
    rows.copy_(random_rows(5, 256, dtype, 2))
    replay()
    assert torch.equal(out, gated(norm(rows)))
