"""What cannot be served is refused before anything is started, as the workers would refuse it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.errors import CannotServe
from deploy.local.preflight import ask_machine, checked
from deploy.local.settings import ClusterSettings, effective_configs
from deploy.local.shared_memory import free_bytes
from engine.bundled import bundled_model_path
from engine.model_folder import open_model_folder
from runtime.errors import ConfigError
from worker.engine_fit import weight_bytes_of

Spoil = Callable[[Path], object]


@pytest.fixture
def settings(model_folder: Path) -> ClusterSettings:
    """A prefill worker and two decode workers that could be started."""
    few_blocks = {"num_blocks": "16"}
    return ClusterSettings(model=model_folder, prefill_worker=few_blocks, decode_worker=few_blocks)


def refusal_of(settings: ClusterSettings) -> str:
    """In one line, with the code for wrong usage."""
    with pytest.raises(CannotServe) as refused:
        checked(settings)
    assert refused.value.exit_code == ConfigError.exit_code == 2
    return refused.value.message


def with_worker(settings: ClusterSettings, role: str, **values: str) -> ClusterSettings:
    """These settings for the workers of a role, in place of their others."""
    if role == "prefill":
        return replace(settings, prefill_worker=values)
    return replace(settings, decode_worker=values)


def test_what_can_be_served_passes_without_a_warning(settings: ClusterSettings) -> None:
    found, configs, remarks = checked(settings)
    assert found == settings
    assert configs.decode.num_blocks == 16
    assert remarks == ()


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"transports": "pigeon"}, "transport 'pigeon' is unknown; use one of shared_memory"),
        ({"transports": "cuda_ipc,tcp"}, "is for workers with --device cuda"),
        ({"tensor_parallel_size": "3"}, "tensor_parallel_size 3 does not fit"),
        ({"kv_slices": "7"}, "cannot be cut into 7 slices"),
    ],
)
def test_a_setting_that_its_workers_would_refuse_is_refused_with_their_role(
    settings: ClusterSettings, role: str, values: dict[str, str], told: str
) -> None:
    message = refusal_of(with_worker(settings, role, **values))
    assert message.startswith(f"{role} workers: ")
    assert told in message


def test_a_cache_that_holds_no_block_is_refused(settings: ClusterSettings) -> None:
    settings = replace(settings, model=bundled_model_path())
    settings = with_worker(settings, "decode", kv_cache_mib="1", block_size="1024")
    assert "one KV block takes 2097152 bytes, more than kv_cache_mib 1" in refusal_of(settings)


def test_settings_of_workers_that_are_not_started_do_not_matter(settings: ClusterSettings) -> None:
    mixed = replace(settings, num_prefill=0, num_decode=0, num_mixed=1)
    checked(with_worker(mixed, "prefill", transports="pigeon"))
    assert "pigeon" in refusal_of(with_worker(mixed, "decode", transports="pigeon"))


def test_pools_that_shared_memory_cannot_hold_are_refused(settings: ClusterSettings) -> None:
    message = refusal_of(with_worker(settings, "decode", num_blocks="2000000000"))
    assert message.startswith("decode workers: /dev/shm is ")
    assert "lower --kv-cache-mib" in message


def test_more_memory_than_the_machine_has_is_refused(settings: ClusterSettings) -> None:
    message = refusal_of(with_worker(settings, "prefill", num_blocks="2000000000"))
    assert message.startswith("3 workers need ")
    assert "start fewer workers" in message


def test_caches_that_nobody_chose_are_made_smaller_for_shared_memory_alone_and_it_is_told(
    settings: ClusterSettings,
) -> None:
    num_free = free_bytes()
    assert num_free is not None
    num_decode = num_free // 2 // (200 << 20) + 1
    settings = replace(settings, num_decode=num_decode, decode_worker={})
    _, configs, (remark,) = checked(settings)
    assert configs.decode.kv_cache_mib <= 200
    assert f"have {configs.decode.kv_cache_mib} MiB each and not 256" in remark
    by_network = replace(settings, num_decode=1)
    by_network = with_worker(by_network, "decode", transports="tcp")
    *_, remarks = checked(by_network)
    assert not [remark for remark in remarks if "MiB" in remark]


def _rename(folder: Path, architecture: str) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": [architecture]}))


def _widen(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(fields))


def _make_unreadable(folder: Path) -> None:
    """Also for root: the kernel reads nothing from there."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/proc/self/mem")


def _shorten(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: is missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
        (_make_unreadable, "model.safetensors: is missing or unreadable; let this user read it"),
        (_shorten, "the copy is incomplete or damaged"),
        (_widen, "config.json and the weights are from different models"),
        (lambda folder: _rename(folder, "T5Encoder"), "architecture T5Encoder is not supported"),
        (lambda folder: _rename(folder, "FooForCausalLM"), "FooForCausalLM, which the transf"),
    ],
)
def test_a_folder_that_no_worker_can_load_is_refused_by_name(
    settings: ClusterSettings, tmp_path: Path, spoil: Spoil, told: str
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(settings.model, folder)
    spoil(folder)
    message = refusal_of(replace(settings, model=folder))
    assert str(folder) in message
    assert told in message


def test_a_path_that_no_system_takes_is_refused(settings: ClusterSettings) -> None:
    assert "cannot be read (File name too long)" in refusal_of(
        replace(settings, model=Path("/", 300 * "a"))
    )


def test_what_a_library_maps_from_files_needs_no_memory_of_the_workers(
    settings: ClusterSettings, tmp_path: Path
) -> None:
    shutil.copytree(settings.model, tmp_path / "other")
    _rename(tmp_path / "other", "Olmo2ForCausalLM")
    own, other = open_model_folder(settings.model), open_model_folder(tmp_path / "other")
    saved, short = effective_configs(settings).prefill, "bfloat16"
    converted = saved.model_copy(update={"dtype": short})
    assert weight_bytes_of(saved, other) == 0
    assert weight_bytes_of(converted, other) == weight_bytes_of(converted, own) > 0


def test_a_way_that_only_prefill_workers_are_to_take_is_told(settings: ClusterSettings) -> None:
    *_, remarks = checked(with_worker(settings, "prefill", transports="gloo,tcp"))
    (remark,) = remarks
    assert "decode workers do not offer gloo" in remark
    assert "--decode-worker.transports" in remark


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"device": "cuda"}, "device cuda:0 is not available on this machine; use --device cpu"),
        ({"transports": "nccl,tcp"}, "the transport nccl cannot be used: it needs a CUDA device"),
    ],
)
async def test_what_only_a_library_can_tell_is_asked_of_it_in_a_process(
    settings: ClusterSettings, values: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings, configs, _ = checked(with_worker(settings, "decode", **values))
    with pytest.raises(CannotServe) as refused:
        await ask_machine(settings, configs, lambda line: None)
    assert refused.value.message.startswith("decode workers: ")
    assert told in refused.value.message


@pytest.mark.slow
async def test_what_is_there_passes(settings: ClusterSettings) -> None:
    settings, configs, _ = checked(with_worker(settings, "decode", transports="gloo,tcp"))
    said: list[str] = []
    await ask_machine(settings, configs, said.append)
    assert said == ["asking libraries and devices what decode workers need of them"]


@pytest.mark.slow
async def test_a_library_that_does_not_answer_has_as_long_as_the_start(
    settings: ClusterSettings,
) -> None:
    settings = replace(settings, start_timeout_s=0.001)
    settings, configs, _ = checked(with_worker(settings, "prefill", transports="gloo,tcp"))
    with pytest.raises(CannotServe, match=r"in 0\.001 s; see nvidia-smi, or raise --start"):
        await ask_machine(settings, configs, lambda line: None)
