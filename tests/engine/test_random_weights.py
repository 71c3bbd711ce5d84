"""A model drawn in place is the model of a folder that holds the same tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.native.choice import choose_kernels
from engine.random_weights_testing import RandomTensors, make_random_decoder
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    family_config,
    make_random_model_folder,
    run_together,
)

CPU = torch.device("cpu")


def run(model: Decoder) -> list[TrialResult]:
    shape = model.config
    layout = KvLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, 16, "float32")
    runner = ModelRunner(model, KvPool(layout, 8), 2)
    return run_together(runner, [TrialRequest(tuple(range(3, 40)), 8)], 16, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_the_same_tensors_in_a_folder_compute(tmp_path: Path, family: str) -> None:
    torch.set_num_threads(1)
    config = make_random_model_folder(tmp_path, family)
    source = RandomTensors(config, torch.float32, CPU, seed=5)
    save_file(
        {name: source.get_tensor(name) for name in source.keys()},  # noqa: SIM118
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    drawn = make_random_decoder(config, torch.float32, CPU, seed=5, kernels=choose_kernels())
    assert run(drawn) == run(load_model(tmp_path))


def test_a_tensor_depends_on_seed_and_name_and_on_nothing_drawn_before() -> None:
    config = family_config("llama")
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    first, second = (RandomTensors(config, torch.float32, CPU, seed=1) for _ in range(2))
    first.get_tensor(other)
    assert torch.equal(first.get_tensor(name), second.get_tensor(name))
    assert not torch.equal(first.get_tensor(name), first.get_tensor(other))
    third = RandomTensors(config, torch.float32, CPU, seed=2)
    assert not torch.equal(first.get_tensor(name), third.get_tensor(name))
    rows = first.get_slice(name)
    assert torch.equal(rows[3:7], first.get_tensor(name)[3:7])
    assert (rows.get_shape(), rows.get_dtype()) == ([96, 64], "F32")
