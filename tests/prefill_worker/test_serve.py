"""What a prefill worker decides by, of its settings."""

from pathlib import Path

import pytest

from prefill_worker.serve import prefill_settings_of
from runtime.cores import available_cores
from runtime.worker_config import PrefillConfig
from scheduling.push_pacing import KvOverlap


@pytest.mark.parametrize(
    ("settings", "are_shared"),
    [
        ({}, True),
        ({"num_threads": available_cores()}, True),
        ({"num_threads": max(1, available_cores() - 1)}, available_cores() == 1),
        # Alone among engines of one machine it takes all cores, whatever its share of them is.
        ({"num_threads": 1, "shared_cores": Path("cores")}, True),
        ({"device": "cuda"}, False),
    ],
)
def test_pushes_and_passes_share_cores_where_the_engine_has_all_of_them(
    settings: dict[str, object], are_shared: bool
) -> None:
    config = PrefillConfig.model_validate({"model": Path("unread"), **settings})
    assert prefill_settings_of(config, num_blocks=8).are_cores_shared == are_shared


@pytest.mark.parametrize("overlap", list(KvOverlap))
def test_the_overlap_is_what_somebody_set(overlap: KvOverlap) -> None:
    config = PrefillConfig.model_validate({"model": Path("unread"), "kv_overlap": overlap.value})
    assert prefill_settings_of(config, num_blocks=8).kv_overlap is overlap


def test_a_push_may_become_as_long_as_a_fraction_of_what_it_may_take() -> None:
    config = PrefillConfig.model_validate({"model": Path("unread"), "push_timeout_s": 8.0})
    assert prefill_settings_of(config, num_blocks=8).max_push_s == 2.0
