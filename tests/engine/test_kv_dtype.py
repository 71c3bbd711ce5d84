import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_dtype import KV_DTYPES, dtype_name, round_to
from engine.kv_pool import KvLayout, KvPool

FP8 = torch.float8_e4m3fn
# Every number that there is.
NUMBERS = torch.arange(256, dtype=torch.uint8).view(FP8).double()
NUMBERS = NUMBERS[NUMBERS.isfinite()]


def test_names_and_dtypes_are_pairs() -> None:
    assert [dtype_name(dtype) for dtype in KV_DTYPES.values()] == list(KV_DTYPES)
    with pytest.raises(ValueError, match=r"float64 is no dtype of KV; use one of \['bfloat16'"):
        dtype_name(torch.float64)


@given(value=st.floats(-600, 600, width=32))
def test_fp8_holds_the_nearest_number(value: float) -> None:
    found = float(round_to(torch.tensor([value]), FP8).double())
    assert abs(found - value) == float((NUMBERS - value).abs().min())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_ends_at_448_and_hides_no_overflow(dtype: torch.dtype) -> None:
    beyond = torch.tensor([448, 449, 464, 465, 480, 1e4, 6e4]).to(dtype)
    both = torch.cat((beyond, -beyond))
    assert round_to(both, FP8).float().tolist() == [448.0] * 7 + [-448.0] * 7
    no_numbers = torch.tensor([torch.inf, -torch.inf, torch.nan]).to(dtype)
    assert round_to(no_numbers, FP8).float().isnan().all()
    # What is rounded is not changed.
    assert float(both[-1]) < -448


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_what_a_pool_was_given_comes_back_rounded_once(dtype: str) -> None:
    layout = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_size=4, dtype=dtype)
    pool = KvPool(layout, 3)
    given = torch.randn(pool.tensor.shape, generator=torch.Generator().manual_seed(1))
    pool.tensor.copy_(given)
    assert len(pool.as_bytes()) == 3 * layout.block_bytes
    # Over the bytes of another pool, as they arrive from another worker.
    again = KvPool(layout, 3, buffer=memoryview(bytearray(pool.as_bytes())))
    assert torch.equal(again.tensor.float(), round_to(given, layout.torch_dtype).float())
    rows = torch.from_numpy(layout.key_rows())
    for layer in range(2):
        keys = again.head_rows(layer).index_select(0, rows).view(layout.torch_dtype)
        assert torch.equal(keys.float().view(2, 4, 8), again.layer(layer)[0, 0].float())
    again.zero_blocks(torch.tensor([1]))
    assert not np.frombuffer(again.as_bytes(), np.uint8).reshape(3, -1)[1].any()
    assert torch.equal(again.tensor[2].float(), pool.tensor[2].float())


def test_fp8_takes_a_quarter_of_float32_and_half_of_16_bits() -> None:
    sizes = [KvLayout(3, 2, 8, 4, dtype).block_bytes for dtype in KV_DTYPES]
    assert sizes == [3 * 2 * 2 * 8 * 4 * width for width in (4, 2, 2, 1)]


def test_an_unknown_dtype_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"'fp8_e5m2' is unknown; use one of \['bfloat16'"):
        KvLayout(1, 1, 8, 4, "fp8_e5m2")
