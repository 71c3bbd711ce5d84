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


def _sampling(*names: str, about: str, **extra: Any) -> Any:
    return typer.Option(*names, help=about, rich_help_panel="Sampling", **extra)


def _stopping(*names: str, about: str) -> Any:
    return typer.Option(*names, help=about, rich_help_panel="Where the answer ends")


def _pem(about: str) -> Any:
    return _connection(about=f"{about}, PEM.", exists=True, dir_okay=False)


# A person at a terminal wants to hear at once that nobody answers.
_RETRY_FOR_S = 2.0
# Half an answer is worth waiting for a router that starts again; Ctrl-C ends it.
_RESUME_FOR_S = 15.0


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
        from tandemserve.channel import check_tls_files
        from tandemserve.client import Client

        tls: TLSConfig | None = None
        try:
            if self.tls or self.tls_ca or self.tls_cert or self.tls_key:
                tls = TLSConfig(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
                check_tls_files(tls)
            if self.timeout is None:
                return Client(
                    self.target,
                    retry_for_s=_RETRY_FOR_S,
                    resume_for_s=_RESUME_FOR_S,
                    token=self.token,
                    tls=tls,
                )
            return Client(
                self.target,
                retry_for_s=_RETRY_FOR_S,
                resume_for_s=_RESUME_FOR_S,
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
    temperature: Annotated[float | None, _sampling("--temperature", "-t", about="0 is greedy.")] = (
        None
    )
    top_k: Annotated[int | None, _sampling(about="Keep the k likeliest; 0 keeps all.")] = None
    top_p: Annotated[
        float | None, _sampling(about="Keep the likeliest up to this probability, at most 1.")
    ] = None
    min_p: Annotated[
        float | None, _sampling(about="Keep tokens this times as likely as the likeliest, 0 to 1.")
    ] = None
    repetition_penalty: Annotated[
        float | None, _sampling(about="Above 1 avoids tokens of prompt and answer.")
    ] = None
    presence_penalty: Annotated[
        float | None, _sampling(about="Above 0 avoids tokens of the answer, -2 to 2.")
    ] = None
    frequency_penalty: Annotated[
        float | None, _sampling(about="The same for each time it was there, -2 to 2.")
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        _sampling(about="ID:BIAS for a token id, -100 to 100; repeatable.", metavar="ID:BIAS"),
    ] = None
    seed: Annotated[
        int | None, _sampling(about="The same seed, the same tokens; else by the request id.")
    ] = None
    max_tokens: Annotated[
        int | None, _stopping("--max-tokens", "-m", about="At most so many tokens.")
    ] = None
    min_tokens: Annotated[
        int | None, _stopping(about="Neither end nor stop before so many tokens.")
    ] = None
    stop: Annotated[list[str] | None, _stopping(about="Stop string; repeatable.")] = None
    stop_token_id: Annotated[
        list[int] | None, _stopping(about="Token id that ends the answer; repeatable.")
    ] = None
    ignore_eos: Annotated[
        bool, _stopping("--ignore-eos", about="Go on past the model's own end.")
    ] = False
    ttft_ms: Annotated[float | None, typer.Option(help="Wanted time to first token.")] = None
    tpot_ms: Annotated[float | None, typer.Option(help="Wanted time per later token.")] = None
    tbt_ms: Annotated[
        float | None, typer.Option(help="Wanted time between any two tokens, not the mean only.")
    ] = None
    jct_ms: Annotated[
        float | None, typer.Option(help="Wanted time to the end; ends nothing, as --timeout does.")
    ] = None
    request_class: Annotated[
        RequestClassName | None, typer.Option("--class", help="How urgent it is.")
    ] = None
    tenant: Annotated[str | None, typer.Option(help="Whom the work is done for.")] = None
    session: Annotated[str | None, typer.Option(help="Same for turns of a conversation.")] = None
    cache_salt: Annotated[
        str | None, typer.Option(help="Share cached prompts only where this is the same.")
    ] = None

    def as_options(self) -> GenerateOptions:
        """For the SDK. Raises: typer.BadParameter."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["stop_token_ids"] = values.pop("stop_token_id")
        values["logit_bias"] = _biases(self.logit_bias)
        return cast(GenerateOptions, values)


def _biases(pairs: list[str] | None) -> dict[int, float] | None:
    """ID:BIAS as the SDK takes them."""
    if pairs is None:
        return None
    biases: dict[int, float] = {}
    for pair in pairs:
        token_id, _, bias = pair.partition(":")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            hint = f"{pair!r} is not ID:BIAS; write for example --logit-bias 42:-100"
            raise typer.BadParameter(hint) from None
    return biases


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
