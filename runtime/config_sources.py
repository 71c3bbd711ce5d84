"""Where settings come from: reads file, variables and flags into one dictionary of raw values.

Knows nothing of any single field; the models of `runtime/config.py` say what exists and what is
allowed. Every problem becomes one line that names the key, its source and near matches.
"""

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from runtime.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
# The password in scheme://user:password@host (it may hold an @ itself) and in ?password=...
_URL_PASSWORD = re.compile(r"(?<=://)([^:@/]*):.*@")
_QUERY_PASSWORD = re.compile(r"([?&]password)=[^&]*")
_MASK = "***"
_NO_VALUE = frozenset({"", "none", "null"})


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line said: raw field values, and the two options that are no fields."""

    values: dict[str, str]
    config_path: Path | None
    dump_config: bool


@dataclass(frozen=True, slots=True)
class Sourced:
    """A raw value and, for messages, where it came from."""

    value: Any
    source: str


def mask(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hide passwords inside URLs; fields of type SecretStr hide themselves."""
    return {
        key: mask_url(value) if isinstance(value, str) else value for key, value in values.items()
    }


def mask_url(url: str) -> str:
    """The URL with its password hidden, fit for logs and messages."""
    return _QUERY_PASSWORD.sub(rf"\1={_MASK}", _URL_PASSWORD.sub(rf"\1:{_MASK}@", url))


def folder_name(fields: Mapping[str, Any]) -> str:
    """The default name of a model: the name of its folder, whatever path leads there."""
    # Absent when the path itself was refused, which is then the error that is reported.
    model = fields.get("model", Path("model"))
    return Path(os.path.abspath(model)).name or "model"


def env_prefix(process: str) -> str:
    """What the variables of a process begin with."""
    return f"TANDEM_{process.upper()}_"


def to_yaml(values: Mapping[str, Any]) -> str:
    """A file that --config would accept, apart from masked secrets."""
    return yaml.safe_dump(dict(values), sort_keys=True, allow_unicode=True)


def merge(
    cls: type[BaseModel], process: str, environ: Mapping[str, str], flags: Flags
) -> dict[str, Sourced]:
    """The raw value of each field that was set anywhere; later sources win."""
    merged: dict[str, Sourced] = {}
    if flags.config_path is not None:
        for key, value in _read_file(flags.config_path, process).items():
            if key not in cls.model_fields:
                near = _near(key, cls.model_fields)
                raise ConfigError(f"{process}: {flags.config_path}: unknown key {key!r}{near}")
            merged[key] = Sourced(value, f"{flags.config_path}")
    prefix = env_prefix(process)
    for name in sorted(environ):
        if name.startswith(prefix):
            field = name.removeprefix(prefix).lower()
            if field not in cls.model_fields or name != name.upper():
                _refuse_variable(cls, process, name)
            merged[field] = Sourced(_split(cls.model_fields[field], environ[name]), name)
    for field, text in flags.values.items():
        value = _split(cls.model_fields[field], text)
        merged[field] = Sourced(value, _flag(field))
    return merged


def validate(cls: type[Model], process: str, merged: Mapping[str, Sourced]) -> Model:
    """Build the config. Raises: ConfigError with every refused field, in one line."""
    for field, sourced in merged.items():
        # Python's True is the integer 1, which is never what a file means by it.
        if isinstance(sourced.value, bool) and bool not in _types_of(cls.model_fields[field]):
            raise ConfigError(f"{process}: {field}: must not be true or false ({sourced.source})")
    try:
        return cls.model_validate({field: sourced.value for field, sourced in merged.items()})
    except ValidationError as error:
        problems = "; ".join(
            _explain(process, item, merged)
            for item in error.errors()
            # Only says that another field, which has an entry of its own, was refused.
            if item["type"] != "default_factory_not_called"
        )
    raise ConfigError(f"{process}: {problems}")


def _explain(process: str, item: Any, merged: Mapping[str, Sourced]) -> str:
    field = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "missing":
        variable = env_prefix(process) + field.upper()
        return f"{field} is required; pass {_flag(field)} or set {variable}"
    message = item["msg"].removeprefix("Value error, ")
    if not field:
        return str(message)
    message = message[:1].lower() + message[1:]
    source = merged[field].source if field in merged else "default"
    # The refused value itself is not repeated: it may hold a password.
    return f"{field}: {message} ({source})"


def _refuse_variable(cls: type[BaseModel], process: str, name: str) -> NoReturn:
    prefix = env_prefix(process)
    known = [prefix + field.upper() for field in cls.model_fields]
    hint = _near(name.upper(), known)
    if name.endswith(("_SERVICE_HOST", "_SERVICE_PORT")) or "_TCP" in name:
        hint = "; Kubernetes sets it for a service: set enableServiceLinks: false in the pod"
    raise ConfigError(f"{process}: unknown environment variable {name}{hint}")


def _near(key: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(key, list(known), n=3, cutoff=0.75)
    return f"; did you mean {', '.join(matches)}?" if matches else "; see --help for all settings"


def _types_of(info: FieldInfo) -> tuple[Any, ...]:
    return get_args(info.annotation) or (info.annotation,)


def _split(info: FieldInfo, text: str) -> Any:
    """Variables and flags are text: lists are separated by commas, `none` unsets."""
    if type(None) in _types_of(info) and text.strip().lower() in _NO_VALUE:
        return None
    if getattr(info.annotation, "__origin__", None) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


# --- file -------------------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice, where YAML would silently take the second."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_file(path: Path, process: str) -> dict[str, Any]:
    try:
        # A subclass of SafeLoader: builds plain data only.
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{process}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{process}: {path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{process}: {path} is not valid YAML: {_where(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{process}: {path} must hold `key: value` lines")
    return content


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "syntax error"
    return problem if mark is None else f"line {mark.line + 1}: {problem}"


# --- flags ------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def parse_flags(cls: type[BaseModel], process: str, argv: Sequence[str]) -> Flags:
    """Read the command line. Values stay text; only their names are checked here."""
    parser = _Parser(
        prog=process,
        description=f"{(cls.__doc__ or '').strip()} Each may also be a key of the --config file "
        f"or a variable such as {env_prefix(process)}LOG_LEVEL; flags win, then variables.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "--dump-config", action="store_true", help="print the effective settings and exit"
    )
    for field, info in cls.model_fields.items():
        # A switch needs no value, and has a twin that turns it off.
        switch: dict[str, Any] = {}
        if bool in _types_of(info):
            switch = {"nargs": "?", "const": "true"}
            parser.add_argument(
                f"--no-{_flag(field)[2:]}",
                dest=f"field_{field}",
                action="store_const",
                const="false",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
        parser.add_argument(
            _flag(field),
            dest=f"field_{field}",
            metavar=_metavar(info),
            default=argparse.SUPPRESS,
            help=_describe(info).replace("%", "%%"),
            **switch,
        )
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        _refuse_argument(cls, process, unknown)
    values = {
        name.removeprefix("field_"): value
        for name, value in vars(known).items()
        if name.startswith("field_")
    }
    return Flags(values, known.config, known.dump_config)


def _refuse_argument(cls: type[BaseModel], process: str, unknown: Sequence[str]) -> NoReturn:
    flag = next((argument for argument in unknown if argument.startswith("-")), None)
    if flag is None:
        raise ConfigError(f"{process}: unexpected argument {unknown[0]!r}; settings are --flags")
    name = flag.partition("=")[0]
    known = ["--config", "--dump-config", *(_flag(field) for field in cls.model_fields)]
    raise ConfigError(f"{process}: unknown flag {name}{_near(name, known)}")


def _metavar(info: FieldInfo) -> str:
    choices = [value for value in get_args(info.annotation) if isinstance(value, str)]
    if choices:
        return "{" + ",".join(choices) + "}"
    names = [kind.__name__ for kind in _types_of(info) if isinstance(kind, type)]
    kind = next((name for name in names if name != "NoneType"), "str")
    known = {"int": "N", "float": "X", "bool": "YES", "tuple": "LIST"}
    known |= {"Path": "PATH", "SecretStr": "SECRET"}
    return known.get(kind, "TEXT")


def _describe(info: FieldInfo) -> str:
    notes = []
    if info.is_required():
        notes.append("required")
    elif info.default is not PydanticUndefined and info.default not in (None, ()):
        notes.append(f"default: {_plain(info.default)}")
    if info.examples:
        notes.append(f"example: {_plain(info.examples[0])}")
    return f"{info.description}" + (f" ({'; '.join(notes)})" if notes else "")


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return _MASK if isinstance(value, SecretStr) else str(value)
