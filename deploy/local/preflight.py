"""What cannot work, or not as asked, is found here before anything is started.

Settings, model and machine are judged by the workers' own checks (worker/preflight.py), so that the
same is said in one line at once, and not after seconds in a worker's log.
"""

import asyncio
import os
from collections.abc import Callable, Iterator

from deploy.local.errors import CannotServe
from deploy.local.log_folder import make_log_folder
from deploy.local.settings import (
    ClusterSettings,
    EffectiveConfigs,
    child_environ,
    effective_configs,
    plan_preflights,
    with_common_slices,
    with_fitting_kv_cache,
)
from deploy.local.shared_memory import free_bytes, remove_leftovers, require_room
from engine.model_folder import ModelFolder, open_model_folder
from engine.model_folder_errors import ModelFolderError
from kvtransfer.errors import ExportUnavailable
from runtime.bound_child import bound_to_this_process
from runtime.errors import StartupError
from runtime.memory import memory_bytes
from runtime.worker_config import DecodeConfig, WorkerConfig
from worker.engine_fit import kv_bytes_of, weight_bytes_of
from worker.preflight import needs_a_process, require_servable, require_settings_fit
from worker.transport_names import SHARED_MEMORY, transport_names

_MIB = 1 << 20


def checked(
    settings: ClusterSettings,
) -> tuple[ClusterSettings, EffectiveConfigs, tuple[str, ...]]:
    """The settings as they will be used, what processes make of them, and what to warn of.

    Raises: StartupError; CannotServe where workers would not serve the model with them.
    """
    configs = effective_configs(settings)
    try:
        folder = open_model_folder(settings.model, configs.router.max_model_len)
        require_servable(folder)
    except (ModelFolderError, StartupError) as error:
        raise CannotServe(str(error)) from error
    _require_settings_fit(settings, configs, folder)
    settings = with_common_slices(settings, configs)
    if _is_in_shared_memory(configs.decode) and (num_free := free_bytes()) is not None:
        settings = with_fitting_kv_cache(settings, configs.decode, num_free)
    wanted_mib, configs = configs.decode.kv_cache_mib, effective_configs(settings)
    _require_settings_fit(settings, configs, folder)
    groups = list(_groups(settings, configs))
    _require_memory(groups, folder)
    if settings.log_dir is not None:
        make_log_folder(settings.log_dir)
    remarks = [*folder.config.remarks, *_transport_remarks(groups)]
    if configs.decode.kv_cache_mib != wanted_mib:
        remarks.append(
            f"the KV caches of decode workers have {configs.decode.kv_cache_mib} MiB each and not "
            f"{wanted_mib}, since /dev/shm is small; enlarge it (docker: --shm-size), or move KV "
            "by --transports tcp"
        )
    return settings, configs, tuple(remarks)


async def ask_machine(
    settings: ClusterSettings, configs: EffectiveConfigs, say: Callable[[str], None]
) -> None:
    """What only a library or a device can tell, in processes that end with the answer.

    Takes seconds, of which `say` tells, and nothing where no setting needs it. Raises: CannotServe.
    """
    needed = [role for role, _, config in _groups(settings, configs) if needs_a_process(config)]
    for plan in plan_preflights(settings, configs):
        if plan.name not in needed:
            continue
        say(f"asking libraries and devices what {plan.name} workers need of them")
        process = await asyncio.create_subprocess_exec(
            *bound_to_this_process(plan.command),
            env=child_environ(os.environ, plan),  # noqa: TID251  children inherit it
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                _, told = await process.communicate()
        except TimeoutError as error:
            problem = (
                f"their libraries and device have not answered in {settings.start_timeout_s:g} s; "
                "see nvidia-smi, or raise --start-timeout-s"
            )
            raise CannotServe(problem, plan.name) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            # Libraries may have said something before.
            lines = told.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"its check ended with status {process.returncode}"
            raise CannotServe(reason, plan.name)


def _groups(
    settings: ClusterSettings, configs: EffectiveConfigs
) -> Iterator[tuple[str, int, WorkerConfig]]:
    """Workers with the same settings: what they are called, how many there are."""
    if settings.num_prefill:
        yield "prefill", settings.num_prefill, configs.prefill
    if num_decode := settings.num_decode + settings.num_mixed:
        yield "decode", num_decode, configs.decode


def _require_settings_fit(
    settings: ClusterSettings, configs: EffectiveConfigs, folder: ModelFolder
) -> None:
    """Raises: CannotServe."""
    for role, _, config in _groups(settings, configs):
        try:
            require_settings_fit(config, folder)
        except StartupError as error:
            raise CannotServe(error.message, role) from error


def _require_memory(groups: list[tuple[str, int, WorkerConfig]], folder: ModelFolder) -> None:
    """Of the machine, for all workers on CPUs; a GPU is asked when the model is in it.

    Raises: CannotServe.
    """
    needed_bytes, num_workers = 0, 0
    for role, count, config in groups:
        if config.device != "cpu":
            continue
        kv_bytes = count * kv_bytes_of(config, folder)
        needed_bytes += count * weight_bytes_of(config, folder) + kv_bytes
        num_workers += count
        if isinstance(config, DecodeConfig) and _is_in_shared_memory(config):
            remove_leftovers()
            try:
                require_room(kv_bytes)
            except ExportUnavailable as error:
                hint = "or lower --kv-cache-mib, or move KV by --transports tcp"
                raise CannotServe(f"{error}; {hint}", role) from error
    total_bytes = memory_bytes()
    if total_bytes is not None and needed_bytes > total_bytes:
        raise CannotServe(
            f"{num_workers} workers need {needed_bytes // _MIB} MiB for the model's weights and "
            f"their KV alone, and processes here can have {total_bytes // _MIB} MiB; start fewer "
            "workers, lower --kv-cache-mib, or take a smaller model or --dtype"
        )


def _is_in_shared_memory(config: DecodeConfig) -> bool:
    """Whether that is where the worker's pool lies."""
    return config.device == "cpu" and SHARED_MEMORY in transport_names(config)


def _transport_remarks(groups: list[tuple[str, int, WorkerConfig]]) -> list[str]:
    """Of ways for KV that were asked for and will not be gone."""
    offers = [transport_names(config) for role, _, config in groups if role == "decode"]
    tries = [config for role, _, config in groups if role == "prefill"]
    return [
        f"decode workers do not offer {name}, which prefill workers are to try: set "
        "--decode-worker.transports as well, or --transports for all"
        for config in tries
        for offered in offers
        for name in transport_names(config)
        if name not in offered
    ]
