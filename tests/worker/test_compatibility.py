"""What must be equal on two workers that exchange KV, and what may differ."""

from dataclasses import replace

import pytest

from engine.kv_pool import KvLayout
from runtime.worker_config import PrefillConfig, WorkerConfig
from worker.compatibility import compatibility_of, traits_of

LAYOUT = KvLayout(4, 8, 64, 16, "bfloat16")


def config_of(**settings: object) -> WorkerConfig:
    return PrefillConfig(**{"model": "m", "worker_id": "w"} | settings)  # type: ignore[arg-type]


def traits(
    config: WorkerConfig | None = None,
    layout: KvLayout = LAYOUT,
    weights: str = "w1",
    arithmetic: str = "a1",
    dtype: str = "bfloat16",
) -> tuple[str, ...]:
    return traits_of(config or config_of(), layout, weights, arithmetic, dtype)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (traits(dtype="float32"), ["dtype=float32"]),
        (traits(layout=replace(LAYOUT, dtype="fp8_e4m3")), ["KV dtype=fp8_e4m3"]),
        (traits(layout=replace(LAYOUT, head_dim=128)), ["head size=128"]),
        (traits(layout=replace(LAYOUT, block_size=32)), ["block size=32"]),
        (traits(layout=replace(LAYOUT, num_kv_heads=4)), ["KV heads=4"]),
        (traits(layout=replace(LAYOUT, num_layers=5)), ["layers=5"]),
        (traits(weights="w2"), ["weights=w2"]),
        (traits(arithmetic="a2"), ["arithmetic=a2"]),
        (traits(config_of(device="cuda")), ["device=cuda"]),
        (traits(config_of(kv_slices=2)), ["KV slices=2"]),
    ],
)
def test_whatever_makes_blocks_of_no_use_to_the_other_is_a_trait_with_a_name(
    other: tuple[str, ...], named: list[str]
) -> None:
    assert [trait for trait in other if trait not in traits()] == named
    assert compatibility_of(other) != compatibility_of(traits())


def test_ranks_may_divide_the_heads_as_they_like() -> None:
    halves = traits(
        config_of(tensor_parallel_size=2), replace(LAYOUT, num_kv_heads=4, head_groups=1)
    )
    whole = traits(config_of(kv_slices=2), replace(LAYOUT, head_groups=2))
    assert halves == whole


def test_settings_of_one_worker_alone_change_nothing() -> None:
    other = config_of(worker_id="x", max_num_seqs=3, transports=("tcp",))
    assert compatibility_of(traits(other)) == compatibility_of(traits())
