"""What a local cluster consists of, and what follows from that for each process. Pure.

The settings of the processes themselves stay text here: runtime/config.py knows what they mean,
and `effective_configs` asks it before anything is started.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import lcm
from pathlib import Path

from pydantic import SecretStr

from runtime.config import WILDCARD_HOSTS, ProcessConfig, RouterConfig, load_config
from runtime.config_sources import env_prefix
from runtime.cores import resolve_num_threads
from runtime.errors import ConfigError
from runtime.policy_config import check_policy
from runtime.worker_config import DecodeConfig, PrefillConfig

ROOT = Path(__file__).resolve().parents[2]
ROUTER = "router-0"
# A local user waits for the end of `up`, so running requests get less time than on a server.
_DRAIN_TIMEOUT_S = "10"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """A cluster to be started. The mappings hold settings by field name, as on a command line."""

    model: Path
    # By which clients ask for it; None takes the folder's name.
    model_name: str | None = None
    num_prefill: int = 1
    num_decode: int = 2
    num_mixed: int = 0
    # None starts a server.
    redis_url: str | None = None
    host: str = "127.0.0.1"
    # 0 picks a free one.
    port: int = 0
    router: Mapping[str, str] = field(default_factory=dict)
    prefill_worker: Mapping[str, str] = field(default_factory=dict)
    decode_worker: Mapping[str, str] = field(default_factory=dict)
    # None makes a temporary folder, which a clean end removes.
    log_dir: Path | None = None
    start_timeout_s: float = 600.0

    @property
    def num_workers(self) -> int:
        return self.num_prefill + self.num_decode + self.num_mixed

    @property
    def workers_text(self) -> str:
        """How many of each role, for people."""
        counts = (
            ("prefill", self.num_prefill),
            ("decode", self.num_decode),
            ("mixed", self.num_mixed),
        )
        return ", ".join(f"{count} {role}" for role, count in counts if count)


@dataclass(frozen=True, slots=True)
class EffectiveConfigs:
    """What the processes will make of their settings and of the environment."""

    router: RouterConfig
    prefill: PrefillConfig
    decode: DecodeConfig


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """How one process is started."""

    name: str
    command: tuple[str, ...]
    # On top of the environment of the launcher.
    environ: Mapping[str, str]


def effective_configs(settings: ClusterSettings) -> EffectiveConfigs:
    """Let every process's own parser judge its settings, and see that workers can be paired.

    Raises: ConfigError.
    """
    redis = {} if settings.redis_url is None else {"redis_url": settings.redis_url}
    router = load_config(RouterConfig, _flags(_router_values(settings, settings.port) | redis))
    check_policy(router)
    configs = EffectiveConfigs(
        router,
        load_config(PrefillConfig, _flags(_worker_values(settings, "prefill", 0, router))),
        load_config(DecodeConfig, _flags(_worker_values(settings, "decode", 0, router))),
    )
    if settings.num_prefill:
        _require_equal_sums(configs.prefill, configs.decode)
    return configs


def _require_equal_sums(prefill: PrefillConfig, decode: DecodeConfig) -> None:
    """Raises: ConfigError where one side would go on with other bits than the other."""
    numbers_of_parts = [
        config.tensor_parallel_size if config.tensor_parallel_reduce == "sum" else 1
        for config in (prefill, decode)
    ]
    if len(set(numbers_of_parts)) > 1:
        raise ConfigError(
            "workers that add up parts (--tensor-parallel-reduce sum) exchange KV only with their "
            "like; give --tensor-parallel-size and --tensor-parallel-reduce to all workers"
        )


def plan_processes(
    settings: ClusterSettings,
    configs: EffectiveConfigs,
    redis_url: str,
    port: int,
    run_folder: Path | None = None,
) -> tuple[ProcessPlan, ...]:
    """The router first, then the prefill workers, then the decode and the mixed workers.

    With a folder, engines whose threads nobody chose share the cores through a file in it.
    """
    plans = [_plan("router", ROUTER, configs.router, _router_values(settings, port), redis_url)]
    roles: tuple[tuple[str, int, PrefillConfig | DecodeConfig], ...] = (
        ("prefill", settings.num_prefill, configs.prefill),
        ("decode", settings.num_decode, configs.decode),
        ("mixed", settings.num_mixed, configs.decode),
    )
    for role, count, config in roles:
        num_threads = resolve_num_threads(config.num_threads, settings.num_workers)
        # The two libraries under torch that would otherwise start a thread for each core.
        threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        # Waiting threads spin for about a millisecond: long enough to meet the next operation of
        # a step, short enough to leave the core to another engine between two.
        threads["GOMP_SPINCOUNT"] = "30000"
        for number in range(count):
            values = _worker_values(settings, role, number, configs.router)
            values["num_threads"] = str(num_threads)
            is_alone = config.tensor_parallel_size == 1
            if run_folder is not None and config.num_threads is None and is_alone:
                values.setdefault("shared_cores", str(run_folder / "cores"))
            plan = _plan(f"{config.process}_worker", values["worker_id"], config, values, redis_url)
            plans.append(ProcessPlan(plan.name, plan.command, {**plan.environ, **threads}))
    return tuple(plans)


def plan_preflights(
    settings: ClusterSettings, configs: EffectiveConfigs
) -> tuple[ProcessPlan, ...]:
    """How to ask what a prefill and a decode worker need of this machine."""
    plans = []
    for role in ("prefill", "decode"):
        flags = _flags(_worker_values(settings, role, 0, configs.router))
        command = (sys.executable, "-P", "-m", "worker.preflight_process", role, *flags)
        plans.append(ProcessPlan(role, command, {}))
    return tuple(plans)


def dialable_endpoint(host: str, port: int) -> str:
    """Where a client on this machine reaches a router that listens on `host`."""
    bare = host.strip("[]")
    if host in WILDCARD_HOSTS:
        bare = "::1" if ":" in bare else "127.0.0.1"
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def with_fitting_kv_cache(
    settings: ClusterSettings, decode: DecodeConfig, free_bytes: int
) -> ClusterSettings:
    """Make KV caches smaller whose size nobody chose and that shared memory cannot hold.

    Containers often have 64 MiB of it. Half of `free_bytes` is left to others.
    """
    if decode.model_fields_set & {"kv_cache_mib", "num_blocks"}:
        return settings
    num_pools = settings.num_decode + settings.num_mixed
    fitting_mib = max(1, free_bytes // 2 // num_pools // 2**20)
    if fitting_mib >= decode.kv_cache_mib:
        return settings
    smaller = {**settings.decode_worker, "kv_cache_mib": str(fitting_mib)}
    return replace(settings, decode_worker=smaller)


def with_common_slices(settings: ClusterSettings, configs: EffectiveConfigs) -> ClusterSettings:
    """Have workers of different numbers of ranks cut blocks alike, where nobody chose how."""
    prefill, decode = configs.prefill, configs.decode
    is_alike = prefill.tensor_parallel_size == decode.tensor_parallel_size
    is_chosen = prefill.kv_slices is not None or decode.kv_slices is not None
    if is_alike or is_chosen or not settings.num_prefill:
        return settings
    common = {"kv_slices": str(lcm(prefill.tensor_parallel_size, decode.tensor_parallel_size))}
    return replace(
        settings,
        prefill_worker={**settings.prefill_worker, **common},
        decode_worker={**settings.decode_worker, **common},
    )


def _router_values(settings: ClusterSettings, port: int) -> dict[str, str]:
    values = {"drain_timeout_s": _DRAIN_TIMEOUT_S, **settings.router}
    if settings.model_name is not None:
        values.setdefault("served_model_name", settings.model_name)
    return values | {
        "model": str(settings.model),
        "host": settings.host,
        "port": str(port),
        "router_id": ROUTER,
    }


def _worker_values(
    settings: ClusterSettings, role: str, number: int, router: RouterConfig
) -> dict[str, str]:
    chosen = settings.prefill_worker if role == "prefill" else settings.decode_worker
    values = {"drain_timeout_s": _DRAIN_TIMEOUT_S, **chosen}
    # Whoever sets another policy for workers means it, and the router tells of it.
    if "policy" not in values:
        values["policy"] = router.policy
        values.setdefault("policy_set", ",".join(router.policy_set))
    if role == "mixed":
        values["role"] = role
    return values | {"model": str(settings.model), "worker_id": f"{role}-{number}"}


def _plan(
    module: str, name: str, config: ProcessConfig, values: Mapping[str, str], redis_url: str
) -> ProcessPlan:
    # Every user of the machine may read a command line, so secrets travel in the environment.
    secret = {"redis_url": redis_url}
    for field_name, value in config:
        if isinstance(value, SecretStr):
            secret[field_name] = value.get_secret_value()
    public = {key: value for key, value in values.items() if key not in secret}
    prefix = env_prefix(config.process)
    environ = {prefix + key.upper(): value for key, value in secret.items()}
    # The current folder, which may hold another `router`, stays out of the child's path.
    command = (sys.executable, "-P", "-m", module, *_flags(public))
    return ProcessPlan(name, command, environ)


def child_environ(inherited: Mapping[str, str], plan: ProcessPlan) -> dict[str, str]:
    """The whole environment of a child; this checkout comes first on its path."""
    path = os.pathsep.join(part for part in (str(ROOT), inherited.get("PYTHONPATH")) if part)
    return {**inherited, **plan.environ, "PYTHONPATH": path}


def _flags(values: Mapping[str, str]) -> list[str]:
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
