"""The folder as a whole: what it holds, what is missing, and when two folders are the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.model_folder import model_fingerprint, open_model_folder
from engine.model_folder_errors import ModelFileMissing, ModelFolderError, ModelFolderMissing
from engine.tokenizer_testing import byte_level_backend, write_tokenizer

FIELDS = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def write_folder(folder: Path) -> Path:
    write_tokenizer(folder, byte_level_backend())
    (folder / "config.json").write_text(json.dumps(FIELDS))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "top_k": 5}))
    save_file({"embed": torch.zeros(4, 3)}, folder / "model.safetensors")
    return folder


def test_a_folder_is_opened_with_all_that_a_process_needs(tmp_path: Path) -> None:
    folder = open_model_folder(str(write_folder(tmp_path)))
    assert folder.path == tmp_path
    assert (folder.config.architecture, folder.config.eos_token_ids) == ("qwen2", (2,))
    assert folder.generation.top_k == 5
    assert folder.weight_files == (tmp_path / "model.safetensors",)
    assert folder.tokenizer_file == tmp_path / "tokenizer.json"


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    for open_it in (open_model_folder, model_fingerprint):
        with pytest.raises(ModelFolderMissing, match=r"config\.json"):
            open_it(tmp_path / "absent")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write_folder(tmp_path) / name).unlink()
    with pytest.raises(ModelFileMissing, match=name):
        open_model_folder(tmp_path)


@pytest.mark.parametrize("change", [None, "config.json", "tokenizer.json"])
def test_the_fingerprint_follows_the_content_and_nothing_else(
    tmp_path: Path, change: str | None
) -> None:
    one, other = write_folder(tmp_path / "one"), write_folder(tmp_path / "other")
    for name in ("tokenizer.json", "config.json"):
        (other / name).write_bytes((one / name).read_bytes())
    if change:
        content = (one / change).read_bytes()
        (other / change).write_bytes(content.replace(b"e", b"E", 1))
    assert (model_fingerprint(one) == model_fingerprint(other)) is (change is None)
    assert len(model_fingerprint(one)) == 16


def all_leaves(root: type[ModelFolderError]) -> list[type[ModelFolderError]]:
    below = [leaf for child in root.__subclasses__() for leaf in all_leaves(child)]
    return [root, *below]


def test_every_error_of_the_tree_has_its_own_code() -> None:
    codes: list[str] = [leaf.code for leaf in all_leaves(ModelFolderError)]
    assert len(set(codes)) == len(codes)
