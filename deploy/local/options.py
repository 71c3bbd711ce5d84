"""The command line of the launcher, read into the settings of a cluster.

`--router.FIELD`, `--prefill-worker.FIELD` and `--decode-worker.FIELD` reach every setting of the
processes; what FIELD may be is judged by the process's own parser (runtime/config.py). Mixed
workers are decode workers that compute prompts as well, and have their settings.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from deploy.local.settings import ClusterSettings
from engine.bundled import bundled_model_path
from runtime.config import ProcessConfig, RouterConfig
from runtime.errors import ConfigError
from runtime.worker_config import DecodeConfig, PrefillConfig
from scheduling.policies import POLICIES

Command = Literal["up", "demo"]

BUNDLED = "bundled"
DEFAULT_PORT = 7700
_SECTIONS = ("router", "prefill-worker", "decode-worker")
# Set by the launcher, which needs to know them; each with the option that sets it, if there is one.
_LAUNCHER_OWNS = {
    "config": None,
    "dump-config": None,
    "model": "--model",
    "redis-url": "--redis",
    "host": "--host",
    "port": "--port",
    "worker-id": None,
    "router-id": None,
    "role": None,
    "cluster-name": "--cluster-name",
}
# So few that some answers of the demo have to wait for decode space: both ways of binding show.
_DEMO_PREFILL_BLOCKS = "256"
_DEMO_DECODE_BLOCKS = "40"
# The name of the option and of the field that it sets for both kinds of worker.
_WORKER_OPTIONS = (
    ("device", "cpu or cuda"),
    ("dtype", "float32, bfloat16, float16 or auto"),
    ("kv-dtype", "of its KV: the same, or fp8_e4m3"),
    ("block-size", "tokens in a KV block"),
    ("kv-cache-mib", "memory of one worker's KV cache"),
    ("num-blocks", "KV blocks of one worker, instead of --kv-cache-mib"),
    ("max-num-seqs", "sequences in one iteration"),
    ("tensor-parallel-size", "processes that share its layers, KV and threads"),
    ("tensor-parallel-reduce", "gather, with the bits of one process, or sum, which moves less"),
    ("transports", "ways to move KV, offered and tried in this order: shared_memory,tcp"),
)


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What the user wants."""

    command: Command
    settings: ClusterSettings
    as_json: bool

    @property
    def is_bundled_model(self) -> bool:
        return self.settings.model_name == BUNDLED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse_options(argv: Sequence[str]) -> LaunchOptions:
    """Read the arguments after `python -m deploy.local`. Raises: ConfigError; --help exits."""
    plain, sections = _split_sections(argv)
    parsed, unknown = _parser().parse_known_args(plain)
    if unknown:
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}; {_instead_of(unknown)}")
    command: Command = parsed.command
    for option, _ in _WORKER_OPTIONS:
        value = getattr(parsed, option.replace("-", "_"))
        if value is not None:
            for section in ("prefill-worker", "decode-worker"):
                sections[section].setdefault(option, value)
    if command == "demo" and parsed.num_blocks is None and parsed.kv_cache_mib is None:
        sections["prefill-worker"].setdefault("num-blocks", _DEMO_PREFILL_BLOCKS)
        sections["decode-worker"].setdefault("num-blocks", _DEMO_DECODE_BLOCKS)
    if parsed.max_model_len is not None:
        for section in _SECTIONS:
            sections[section].setdefault("max-model-len", parsed.max_model_len)
    if parsed.policy is not None:
        sections["router"].setdefault("policy", parsed.policy)
    if parsed.policy_set:
        sections["router"].setdefault("policy-set", ",".join(parsed.policy_set))
    if parsed.cluster_name is not None:
        for section in _SECTIONS:
            sections[section]["cluster-name"] = parsed.cluster_name
    if parsed.model is None:
        sections["router"].setdefault("served-model-name", BUNDLED)
    by_field = {
        section: {field.replace("-", "_"): value for field, value in values.items()}
        for section, values in sections.items()
    }
    default_prefill, default_decode = (0, 0) if parsed.mixed else (1, 2)
    settings = ClusterSettings(
        model=bundled_model_path() if parsed.model is None else parsed.model.absolute(),
        model_name=None if parsed.model else BUNDLED,
        num_prefill=default_prefill if parsed.prefill is None else parsed.prefill,
        num_decode=default_decode if parsed.decode is None else parsed.decode,
        num_mixed=parsed.mixed,
        redis_url=parsed.redis,
        host=parsed.host,
        port=parsed.port,
        router=by_field["router"],
        prefill_worker=by_field["prefill-worker"],
        decode_worker=by_field["decode-worker"],
        log_dir=None if parsed.log_dir is None else parsed.log_dir.absolute(),
        start_timeout_s=parsed.start_timeout_s,
    )
    return LaunchOptions(command, _with_enough_workers(settings), parsed.json)


def _split_sections(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Take `--SECTION.FIELD=VALUE` and `--SECTION.FIELD VALUE` out of the arguments."""
    plain: list[str] = []
    sections: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.partition("=")
        section, dot, field = name.removeprefix("--").partition(".")
        if not argument.startswith("--") or not dot:
            plain.append(argument)
            continue
        field = field.replace("_", "-")
        if section not in sections:
            raise ConfigError(f"unknown option {name}; {_section_for(section, field)}")
        if field in _LAUNCHER_OWNS:
            option = _LAUNCHER_OWNS[field]
            hint = f"use {option}" if option else "leave it away"
            raise ConfigError(f"{name} is set by the launcher; {hint}")
        if not equals:
            if not remaining:
                raise ConfigError(f"{name} needs a value; write {name}=VALUE")
            value = remaining.pop(0)
        sections[section][field] = value
    return plain, sections


def _instead_of(unknown: Sequence[str]) -> str:
    """How to give what processes know and the launcher does not."""
    name = unknown[0].partition("=")[0].removeprefix("--").replace("_", "-")
    configs: tuple[type[ProcessConfig], ...] = (RouterConfig, PrefillConfig, DecodeConfig)
    known = [
        f"--{section}.{name}"
        for section, config in zip(_SECTIONS, configs, strict=True)
        if name.replace("-", "_") in config.model_fields
    ]
    return f"write {' and '.join(known)}" if known else "see --help"


def _section_for(section: str, field: str) -> str:
    """What to write instead of `--SECTION.FIELD`."""
    if section in ("mixed", "mixed-worker", "mixed_worker"):
        return f"mixed workers take the settings of decode workers: --decode-worker.{field}"
    return "use one of " + ", ".join(f"--{known}.FIELD" for known in _SECTIONS)


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m deploy.local",
        description="A whole cluster on this machine: router, workers and Redis.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|demo")
    up = commands.add_parser("up", help="run until Ctrl-C", allow_abbrev=False)
    demo = commands.add_parser(
        "demo", help="answer some prompts, show where the time went, stop", allow_abbrev=False
    )
    for command, port, start_timeout_s in ((up, DEFAULT_PORT, 600.0), (demo, 0, 120.0)):
        command.epilog = (
            "Every other setting of the processes: --router.FIELD=X, --prefill-worker.FIELD=X, "
            "--decode-worker.FIELD=X, which mixed workers take as well; `python -m router --help` "
            "and so on list them. "
            "Exit codes: 0 ended in order, 1 failed, 2 wrong usage, or a model that cannot be "
            "served so, 130 ended by a second Ctrl-C, or by the first one during the start or the "
            "demo."
        )
        _add_options(command, port, start_timeout_s)
    return parser


def _add_options(parser: argparse.ArgumentParser, port: int, start_timeout_s: float) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="Hugging Face folder (default: the bundled one)")
    about = "prefill workers (default: 1; 0 beside --mixed)"
    add("--prefill", type=_number_of_workers, metavar="N", help=about)
    about = "decode workers (default: 2; 0 beside --mixed)"
    add("--decode", type=_number_of_workers, metavar="M", help=about)
    about = "mixed workers, which compute prompts beside their answers (default: 0)"
    add("--mixed", type=_number_of_workers, default=0, metavar="K", help=about)
    add("--redis", metavar="URL", help="use this server (default: start one)")
    add("--cluster-name", metavar="NAME", help="keeps clusters on one Redis apart")
    add("--host", default="127.0.0.1", help="address of the router (default: 127.0.0.1)")
    about_port = f"port of the router, 0 picks a free one (default: {port})"
    add("--port", type=int, default=port, metavar="P", help=about_port)
    names = ", ".join(name for name, policy in POLICIES.items() if not policy.needs_foresight)
    add("--policy", metavar="NAME", help=f"scheduling policy: one of {names}")
    about_set = "choose otherwise in it, such as victims=last-arrived; may be repeated"
    add("--policy-set", action="append", metavar="FIELD=VALUE,...", help=about_set)
    add("--max-model-len", metavar="N", help="longest prompt plus answer, in tokens")
    for option, about in _WORKER_OPTIONS:
        add(f"--{option}", metavar="X", help=f"of every worker: {about}")
    add("--log-dir", type=Path, metavar="DIR", help="keep the logs of all processes there")
    about_start = f"how long loading may take (default: {start_timeout_s:g})"
    add("--start-timeout-s", type=_seconds, default=start_timeout_s, metavar="S", help=about_start)
    add("--json", action="store_true", help="print JSON for programs")


def _number_of_workers(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 256")
    return int(text)


def _with_enough_workers(settings: ClusterSettings) -> ClusterSettings:
    """Every prompt must find a worker, and its answer another or the same. Raises: ConfigError."""
    if settings.num_mixed or (settings.num_prefill and settings.num_decode):
        return settings
    raise ConfigError(
        f"--prefill {settings.num_prefill} --decode {settings.num_decode} --mixed 0 can answer "
        "nothing; start at least one of each of the first two, or one of the last"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
