"""Options that several commands share, declared once as dataclasses.

A command takes a group as one parameter; `expanded` shows Typer the group's fields instead.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from tandemserve.options import (
    DEFAULT_TARGET,
    GenerateOptions,
    RequestClassName,
    TLSConfig,
)

if TYPE_CHECKING:
    from tandemserve.client import Client

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _connection(*names: str, about: str, **extra: Any) -> Any:
    return typer.Option(*names, help=about, rich_help_panel="Connection", **extra)


def _pem(about: str) -> Any:
    return _connection(about=f"{about}, PEM.", exists=True, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Where the router is and how to reach it."""

    target: Annotated[str, _connection(about="Router, host:port.", envvar="TANDEM_TARGET")] = (
        DEFAULT_TARGET
    )
    token: Annotated[str | None, _connection(about="Access token.", envvar="TANDEM_TOKEN")] = None
    tls: Annotated[
        bool, _connection("--tls", about="Encrypt; implied by --tls-ca and --tls-cert.")
    ] = False
    tls_ca: Annotated[Path | None, _pem("Authorities to trust")] = None
    tls_cert: Annotated[Path | None, _pem("Own certificate")] = None
    tls_key: Annotated[Path | None, _pem("Own private key")] = None
    timeout: Annotated[
        float | None, _connection(about="Give up after this many seconds.", min=0.001, max=1e6)
    ] = None

    def open(self) -> "Client":
        """A client. Raises: typer.BadParameter for options that contradict each other."""
        from tandemserve.client import Client

        tls: TLSConfig | None = None
        try:
            if self.tls or self.tls_ca or self.tls_cert or self.tls_key:
                tls = TLSConfig(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
            if self.timeout is None:
                return Client(self.target, token=self.token, tls=tls)
            return Client(
                self.target,
                token=self.token,
                tls=tls,
                timeout_s=self.timeout,
                query_timeout_s=self.timeout,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What to generate and how; None leaves it to the model or the router."""

    model: Annotated[str | None, typer.Option(help="Model; the only one by default.")] = None
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-m", help="At most.")] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="0 is greedy.")
    ] = None
    top_k: Annotated[int | None, typer.Option(help="0 keeps all tokens.")] = None
    top_p: Annotated[float | None, typer.Option(help="Above 0, at most 1.")] = None
    seed: Annotated[int | None, typer.Option(help="The same seed, the same tokens.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end.")] = False
    ttft_ms: Annotated[float | None, typer.Option(help="Wanted time to first token.")] = None
    tpot_ms: Annotated[float | None, typer.Option(help="Wanted time per later token.")] = None
    request_class: Annotated[
        RequestClassName | None, typer.Option("--class", help="How urgent it is.")
    ] = None
    tenant: Annotated[str | None, typer.Option(help="Whom the work is done for.")] = None
    session: Annotated[str | None, typer.Option(help="Same for turns of a conversation.")] = None

    def as_options(self) -> GenerateOptions:
        """For the SDK."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return cast(GenerateOptions, values)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is an option group replaced by the group's fields."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[parameter.name] = group
            hints = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=hints[field.name],
                )
                for field in fields(group)
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    del call.__wrapped__  # Typer must see the parameters below, not the command's own
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
