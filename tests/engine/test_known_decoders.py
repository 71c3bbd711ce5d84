"""Which decoders the transformers library has, by its own list."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.model_folder import ModelFolder, open_model_folder
from engine.model_folder_errors import UnsupportedModelOption
from engine.other.known import require_known
from engine.testing import make_random_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    make_random_model_folder(tmp_path)
    return open_model_folder(tmp_path)


def named(folder: ModelFolder, architecture: str) -> ModelFolder:
    return replace(folder, config=replace(folder.config, architecture=architecture))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "OPTForCausalLM", "GPTNeoXForCausalLM"])
def test_a_decoder_of_the_library_passes(folder: ModelFolder, name: str) -> None:
    pytest.importorskip("transformers")
    require_known(named(folder, name))


# The second is in another list of the library.
@pytest.mark.parametrize("name", ["FooForCausalLM", "BertForMaskedLM"])
def test_any_other_is_refused(folder: ModelFolder, name: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UnsupportedModelOption, match=f"architecture {name}"):
        require_known(named(folder, name))


def test_a_library_without_such_a_list_decides_later(folder: ModelFolder, tmp_path: Path) -> None:
    require_known(named(folder, "FooForCausalLM"), tmp_path / "library")
