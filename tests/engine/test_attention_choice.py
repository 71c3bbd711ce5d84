from dataclasses import replace

import pytest
import torch

from engine.attention.choice import (
    AttentionShape,
    AttentionUnavailable,
    PrefixSharing,
    choose_attention,
)
from engine.attention.native import NativeAttention
from engine.attention.split_kv import SplitKvAttention
from engine.kv_pool import KvLayout
from engine.model_config import LayerAttention
from engine.native.library import find_compiler

SHAPE = AttentionShape(
    KvLayout(1, 2, 64, 16, "float32"), 4, (LayerAttention(0.125),), torch.device("cpu")
)


def test_by_itself_a_cpu_takes_the_compiled_kernel_where_it_can_be_compiled() -> None:
    expected = SplitKvAttention if find_compiler() is None else NativeAttention
    assert isinstance(choose_attention(SHAPE), expected)


def test_shapes_that_the_kernel_is_not_made_for_take_torch() -> None:
    wide = replace(SHAPE, layout=KvLayout(1, 1, 264, 16, "float32"))
    assert isinstance(choose_attention(wide), SplitKvAttention)
    with pytest.raises(AttentionUnavailable, match="--attention torch on every worker"):
        choose_attention(wide, "native")


@pytest.mark.parametrize("dtype", ["float16", "fp8_e4m3"])
def test_kv_that_the_kernel_does_not_read_takes_torch(dtype: str) -> None:
    shape = replace(SHAPE, layout=replace(SHAPE.layout, dtype=dtype))
    assert isinstance(choose_attention(shape), SplitKvAttention)
    with pytest.raises(AttentionUnavailable, match=r"float32 or bfloat16 KV; .*--attention torch"):
        choose_attention(shape, "native")


def test_backends_have_different_names() -> None:
    names = {choose_attention(SHAPE, "torch").arithmetic, choose_attention(SHAPE).arithmetic}
    assert len(names) == (1 if find_compiler() is None else 2)


@pytest.mark.parametrize("sharing", ["auto", "yes", "no"])
def test_sharing_gives_the_compiled_kernel_no_other_name(sharing: PrefixSharing) -> None:
    if find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    chosen = choose_attention(SHAPE, "native", sharing)
    assert chosen.arithmetic == choose_attention(SHAPE, "native").arithmetic


def test_what_cannot_share_says_so_only_where_it_is_asked_for() -> None:
    with pytest.raises(AttentionUnavailable, match="--shared-prefix-attention auto"):
        choose_attention(SHAPE, "torch", "yes")
    assert isinstance(choose_attention(SHAPE, "torch", "auto"), SplitKvAttention)
    assert isinstance(choose_attention(SHAPE, "torch", "no"), SplitKvAttention)
