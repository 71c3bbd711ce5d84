"""A whole cluster on one device under load: a prefill and a decode worker, and one mixed worker.

The model is a folder of random weights, written once: processes load it as they load any other.
Another server is not started: nothing can be fetched where a GPU is lent, so figures of others
stand beside these only as they were published.
"""

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.end_to_end.measure import Figures, run_load
from benchmarks.end_to_end.tandem_server import tandem
from benchmarks.end_to_end.workload import Load, make_load, table_lengths
from benchmarks.gpu.engine_setup import MAX_CONTEXT, MODEL_SHAPES, EngineSetup, config_of
from benchmarks.gpu.journal import Journal
from engine.model_folder_testing import write_trained_tokenizer
from engine.random_weights_testing import RandomTensors
from engine.testing import family_fields

LAYOUTS: Mapping[str, Mapping[str, int]] = {
    "a prefill and a decode worker": {"prefill": 1, "decode": 1},
    "a mixed worker": {"mixed": 1},
}
_START_S = 20.0
_FIXED = (512, 128)
_SHARD_BYTES = 2 << 30
_FAST_FOLDER = Path("/dev/shm")
# Of what the weights of all workers leave of a device.
_KV_SHARE = 0.7


def measure_cluster(setup: EngineSetup, journal: Journal) -> None:
    """A row for each layout and number of clients."""
    options = setup.options
    lengths = options.lengths.rpartition("/")[2] or f"{_FIXED[0]} and {_FIXED[1]}"
    journal.note(lengths=lengths, shape=options.shape, dtype=options.dtype_name)
    journal.skip("another server", "it cannot be installed beside this one here")
    with tempfile.TemporaryDirectory(prefix="cluster-", dir=_folder_for(setup)) as name:
        model = Path(name) / "model"
        num_bytes = write_model(setup, model)
        for layout, workers in LAYOUTS.items():
            if not journal.has_time(layout, _START_S):
                continue
            asyncio.run(_measure_layout(setup, journal, (layout, workers), model, num_bytes))


async def _measure_layout(
    setup: EngineSetup,
    journal: Journal,
    layout: tuple[str, Mapping[str, int]],
    model: Path,
    weight_bytes: int,
) -> None:
    name, workers = layout
    options = setup.options
    settings = {
        "device": options.device,
        "dtype": options.dtype_name,
        "attention": options.attention,
    }
    kv_mib = _kv_mib(setup, sum(workers.values()), weight_bytes)
    log = journal.file(f"cluster_{len(workers)}.log")
    async with tandem(model, workers, settings, settings, log, kv_mib) as stream:
        for num_clients in (4,) if options.is_quick else (1, 16, 64, 128):
            if not journal.has_time(f"{name}, {num_clients} clients", 5.0):
                continue
            load = _load(setup, num_clients)
            try:
                async with asyncio.timeout(journal.seconds_left):
                    figures = await run_load(name, stream, load)
            except TimeoutError:
                journal.skip(f"{name}, {num_clients} clients", "it did not end in the time left")
                return
            _tell(journal, figures, load, kv_mib)


def _tell(journal: Journal, figures: Figures, load: Load, kv_mib: int) -> None:
    num_prompt = sum(len(ask.prompt) for ask in load.asks)
    row = {
        **figures.as_json(),
        "requests_per_s": figures.num_requests / figures.seconds,
        "mean_prompt": num_prompt / len(load.asks),
        "mean_answer": load.num_output_tokens / len(load.asks),
        "kv_cache_mib": kv_mib,
    }
    print(
        f"{figures.server}, {figures.num_clients} clients: {figures.tokens_per_s:.0f} tokens/s, "
        f"TTFT p50 {figures.ttft_p50:.0f} ms, ITL p50 {figures.itl_p50:.1f} ms",
        flush=True,
    )
    journal.row(row)


def _load(setup: EngineSetup, num_clients: int) -> Load:
    options, rng = setup.options, random.Random(num_clients)
    vocab_size = MODEL_SHAPES[options.shape]["vocab_size"]
    count = num_clients * (1 if options.is_quick else 4)
    if options.is_quick:
        lengths = [(24, 6)] * count
    elif options.lengths:
        longest = MAX_CONTEXT - 1
        lengths = table_lengths(Path(options.lengths), count, rng, scale=1, max_tokens=longest)
    else:
        lengths = [_FIXED] * count
    return make_load(num_clients, lengths, vocab_size, rng)


def _kv_mib(setup: EngineSetup, num_workers: int, weight_bytes: int) -> int:
    """For each worker; given, since each would otherwise measure a device that both fill."""
    if not setup.options.is_cuda:
        return 64
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    return int((free_bytes / num_workers - weight_bytes) * _KV_SHARE) >> 20


def _folder_for(setup: EngineSetup) -> str | None:
    """Memory where there is plenty, since it is read by every worker; else the usual place."""
    if not setup.options.is_cuda or not _FAST_FOLDER.is_dir():
        return None
    has_room = shutil.disk_usage(_FAST_FOLDER).free > 48 << 30
    return str(_FAST_FOLDER) if has_room else None


def write_model(setup: EngineSetup, folder: Path) -> int:
    """A folder of random weights in files of some GiB; returns the bytes of all weights."""
    folder.mkdir(parents=True)
    config, dtype = config_of(setup.options.shape), setup.options.dtype_name
    sizes = MODEL_SHAPES[setup.options.shape]
    fields = family_fields("llama", **sizes, max_position_embeddings=MAX_CONTEXT, torch_dtype=dtype)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    write_trained_tokenizer(folder, config.vocab_size)
    source = RandomTensors(config, setup.options.dtype, torch.device(setup.options.device))
    shards: list[dict[str, torch.Tensor]] = [{}]
    place: dict[str, int] = {}
    total = held = 0
    for name in source.keys():  # noqa: SIM118 -- not a mapping
        tensor = source.get_tensor(name).cpu()
        if held and held + tensor.nbytes > _SHARD_BYTES:
            _save(folder, len(shards), shards[-1])
            shards.append({})
            held = 0
        shards[-1][name], place[name] = tensor, len(shards)
        held, total = held + tensor.nbytes, total + tensor.nbytes
    _save(folder, len(shards), shards[-1])
    weight_map = {name: _shard_name(number) for name, number in place.items()}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _save(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / _shard_name(number), metadata={"format": "pt"})
    tensors.clear()


def _shard_name(number: int) -> str:
    return f"model-{number:05d}.safetensors"
