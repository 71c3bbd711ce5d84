"""What each process of a cluster is started with."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.settings import (
    ROOT,
    ClusterSettings,
    ProcessPlan,
    child_environ,
    dialable_endpoint,
    effective_configs,
    plan_processes,
    with_common_slices,
    with_fitting_kv_cache,
)
from runtime.config import RouterConfig, load_config
from runtime.cores import available_cores
from runtime.errors import ConfigError
from runtime.worker_config import DecodeConfig, PrefillConfig

SETTINGS = ClusterSettings(model=Path("/models/m"), num_prefill=2, num_decode=3)
REDIS_URL = "redis://:geheim@localhost:1/0"


def plans_of(settings: ClusterSettings) -> tuple[ProcessPlan, ...]:
    return plan_processes(settings, effective_configs(settings), REDIS_URL, 7701)


def flags_of(plan: ProcessPlan) -> list[str]:
    return list(plan.command[plan.command.index("-m") + 2 :])


def test_a_worker_of_several_ranks_shares_no_cores_and_divides_its_threads_itself() -> None:
    settings = replace(SETTINGS, decode_worker={"tensor_parallel_size": "2"})
    configs = effective_configs(settings)
    _, prefill, *_, decode = plan_processes(settings, configs, REDIS_URL, 7701, Path("/run"))
    assert "--shared-cores=/run/cores" in flags_of(prefill)
    assert not any(flag.startswith("--shared-cores") for flag in flags_of(decode))
    threads = max(1, available_cores() // 5)
    assert {f"--num-threads={threads}", "--tensor-parallel-size=2"} <= set(flags_of(decode))


def test_each_process_has_a_name_of_its_own() -> None:
    assert [plan.name for plan in plans_of(SETTINGS)] == [
        *("router-0", "prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2")
    ]


def test_what_a_process_reads_is_what_the_launcher_checked() -> None:
    settings = replace(
        SETTINGS,
        router={"policy": "fcfs"},
        prefill_worker={"block_size": "8"},
        decode_worker={"block_size": "8", "max_num_seqs": "5"},
    )
    router, prefill, *_, decode = plans_of(settings)
    read = load_config(RouterConfig, flags_of(router), router.environ)
    assert (read.port, read.policy, read.redis_url) == (7701, "fcfs", REDIS_URL)
    threads = max(1, available_cores() // 5)
    for config_class, plan in ((PrefillConfig, prefill), (DecodeConfig, decode)):
        environ = {key: value for key, value in plan.environ.items() if key.startswith("TANDEM_")}
        worker = load_config(config_class, flags_of(plan), environ)
        assert (worker.worker_id, worker.redis_url) == (plan.name, REDIS_URL)
        assert (worker.block_size, worker.num_threads) == (8, threads)
        assert plan.environ["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ({"policy": "nope"}, "'nope' is unknown; use one of default"),
        ({"policy": "oracle"}, "'oracle' is unknown; use one of default"),
        ({"policy_set": "predictor=oracle"}, "which only a simulation can"),
    ],
)
def test_a_policy_that_cannot_be_served_is_found_before_anything_is_started(
    router: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        effective_configs(replace(SETTINGS, router=router))


def test_no_secret_is_on_a_command_line() -> None:
    settings = replace(SETTINGS, router={"auth_token": "geheim"})
    plans = plans_of(settings)
    assert not [plan for plan in plans if "geheim" in " ".join(plan.command)]
    assert plans[0].environ["TANDEM_ROUTER_AUTH_TOKEN"] == "geheim"


def test_chosen_threads_are_kept_and_told_to_the_libraries_below() -> None:
    settings = replace(SETTINGS, decode_worker={"num_threads": "3"})
    last = plans_of(settings)[-1]
    assert "--num-threads=3" in last.command
    assert last.environ["OMP_NUM_THREADS"] == "3"


def test_a_child_finds_this_checkout_first_and_never_the_current_folder() -> None:
    plan = plans_of(SETTINGS)[0]
    assert "-P" in plan.command
    environ = child_environ({"PYTHONPATH": "/elsewhere", "HOME": "/root"}, plan)
    assert environ["PYTHONPATH"].split(":") == [str(ROOT), "/elsewhere"]
    assert environ["HOME"] == "/root"


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:1"),
        ("0.0.0.0", "127.0.0.1:1"),
        ("::", "[::1]:1"),
        ("[::1]", "[::1]:1"),
        ("localhost", "localhost:1"),
    ],
)
def test_the_endpoint_can_be_dialled(host: str, endpoint: str) -> None:
    assert dialable_endpoint(host, 1) == endpoint


def test_small_shared_memory_shrinks_a_kv_cache_that_nobody_chose() -> None:
    decode = effective_configs(SETTINGS).decode
    small = with_fitting_kv_cache(SETTINGS, decode, free_bytes=66 << 20)
    assert effective_configs(small).decode.kv_cache_mib == 11
    assert with_fitting_kv_cache(SETTINGS, decode, free_bytes=64 << 30) is SETTINGS


@pytest.mark.parametrize("chosen", [{"kv_cache_mib": "512"}, {"num_blocks": "512"}])
def test_a_chosen_kv_cache_is_never_changed(chosen: dict[str, str]) -> None:
    settings = replace(SETTINGS, decode_worker=chosen)
    decode = effective_configs(settings).decode
    assert with_fitting_kv_cache(settings, decode, free_bytes=1 << 20) is settings


@pytest.mark.parametrize(
    ("prefill", "decode", "slices"),
    [
        ({}, {"tensor_parallel_size": "2"}, (2, 2)),
        ({"tensor_parallel_size": "4"}, {"tensor_parallel_size": "6"}, (12, 12)),
        ({"tensor_parallel_size": "2"}, {"tensor_parallel_size": "2"}, (2, 2)),
        ({}, {}, (1, 1)),
        # Chosen, and so not ours to better.
        ({}, {"tensor_parallel_size": "2", "kv_slices": "4"}, (1, 4)),
    ],
)
def test_workers_of_different_numbers_of_ranks_cut_blocks_alike(
    prefill: dict[str, str], decode: dict[str, str], slices: tuple[int, int]
) -> None:
    settings = replace(SETTINGS, prefill_worker=prefill, decode_worker=decode)
    settings = with_common_slices(settings, effective_configs(settings))
    configs = effective_configs(settings)
    assert (configs.prefill.num_kv_slices, configs.decode.num_kv_slices) == slices


def test_workers_that_add_up_parts_are_refused_beside_others() -> None:
    two, summing = {"tensor_parallel_size": "2"}, {"tensor_parallel_reduce": "sum"}
    for prefill, decode in ((two | summing, two), ({}, two | summing)):
        settings = replace(SETTINGS, prefill_worker=prefill, decode_worker=decode)
        with pytest.raises(ConfigError, match="--tensor-parallel-size"):
            effective_configs(settings)
    for alike in (two | summing, summing):
        effective_configs(replace(SETTINGS, prefill_worker=alike, decode_worker=alike))
    # One rank adds nothing up.
    effective_configs(replace(SETTINGS, prefill_worker=summing, decode_worker=two))
    alone = replace(SETTINGS, num_prefill=0, num_mixed=1, decode_worker=two | summing)
    effective_configs(alone)
