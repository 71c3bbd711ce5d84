"""Whoever waits for a model is told how far it is."""

from pathlib import Path

import pytest

from engine.families_testing import FAMILIES
from engine.loading import load_any_model
from engine.loading_testing import NotedProgress
from engine.model_folder import open_model_folder
from engine.other.testing import make_other_model_folder
from engine.testing import make_random_model_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_family_is_counted_once(tmp_path: Path, family: str) -> None:
    make_random_model_folder(tmp_path, family)
    progress = NotedProgress()
    load_any_model(open_model_folder(tmp_path), "float32", progress=progress)
    assert progress.phases == ["preparing kernels", "loading weights", "trying numbers of rows"]
    steps = progress.steps["loading weights"]
    assert sorted(set(steps)) == steps
    assert steps[-1][0] == steps[-1][1]


def test_what_the_library_loads_is_counted_as_well(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = make_other_model_folder(tmp_path, "gpt2")
    progress = NotedProgress()
    load_any_model(open_model_folder(folder), "float32", progress=progress)
    assert progress.phases == [
        "importing transformers",
        "loading weights",
        "trying numbers of rows",
        "trying it against the library",
    ]
    num_done = [done for done, _ in progress.steps["loading weights"]]
    assert num_done == list(range(progress.steps["loading weights"][0][1]))
    assert len(progress.steps["trying numbers of rows"]) == 8
