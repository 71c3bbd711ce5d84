"""What both clients are made of: checked constructor arguments, and what follows from them."""

import math
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from tandemserve import wire
from tandemserve.api.v1 import inference_pb2
from tandemserve.clock import monotonic
from tandemserve.errors import ClientClosed
from tandemserve.generation import Generation
from tandemserve.options import GenerateOptions, TLSConfig
from tandemserve.retry import Attempts, RetryPolicy
from tandemserve.route import Route


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a client needs to know; nothing of it changes."""

    # One router, or several replicas with commas between.
    target: str
    token: str | None
    tls: TLSConfig | None
    # For a generation with all its retries; None for no limit.
    timeout_s: float | None
    # For every other call.
    query_timeout_s: float
    retry: RetryPolicy
    rng: random.Random = field(default_factory=random.Random)
    now: Callable[[], float] = monotonic

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise TypeError(f"target must be a string, not {type(self.target).__name__}")
        for target in self.targets:
            check_target(target)
        if self.tls is not None and not isinstance(self.tls, TLSConfig):
            raise TypeError(f"tls must be a TLSConfig, not {type(self.tls).__name__}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("token has characters that no header can carry; check it")
        _check_timeout(self.timeout_s)
        _check_timeout(self.query_timeout_s)

    @property
    def targets(self) -> tuple[str, ...]:
        """The routers, each host:port or unix:PATH."""
        return tuple(part.strip() for part in self.target.split(","))

    def route(self) -> Route:
        """The choice among the routers, for one connection."""
        return Route(self.targets, self.rng)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Sent with every call. Without TLS the token travels in clear text."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def query_attempts(self) -> Attempts:
        return self._attempts(self.query_timeout_s)

    def generation(self, prompt: wire.Prompt, options: GenerateOptions) -> Generation:
        """Raises: TypeError; InvalidRequest."""
        request = self._request(options)
        wire.set_prompt(request, prompt)
        return self._generation_of(request, options)

    def chat_generation(self, messages: wire.Messages, options: GenerateOptions) -> Generation:
        """Raises: TypeError; InvalidRequest."""
        request = self._request(options)
        request.chat.CopyFrom(wire.chat_prompt(messages))
        return self._generation_of(request, options)

    def _request(self, options: GenerateOptions) -> inference_pb2.GenerateRequest:
        return wire.generate_request(options, new_request_id=uuid.uuid4().hex)

    def _generation_of(
        self, request: inference_pb2.GenerateRequest, options: GenerateOptions
    ) -> Generation:
        timeout_s = options.get("timeout_s")
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        _check_timeout(timeout_s)
        return Generation(request, self._attempts(timeout_s), self.target)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        num_others = len(self.targets) - 1
        return Attempts(
            self.retry, self.rng, timeout_s=timeout_s, now=self.now(), num_others=num_others
        )


def check_target(target: str) -> None:
    """Raises: ValueError for what is not HOST:PORT or unix:PATH; gRPC would dial something else."""
    if target.startswith("unix:") and len(target) > len("unix:"):
        return
    host, _, port = target.rpartition(":")
    is_host = bool(host) and "/" not in host and (":" not in host or host.startswith("["))
    if not is_host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"{target!r} is no target; give host:port with a port from 1 to 65535, such as "
            "127.0.0.1:7700, or several with commas between"
        )


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise TypeError(f"a timeout must be a number, not {type(timeout_s).__name__}")
    if not timeout_s > 0 or math.isinf(timeout_s):
        raise ValueError(f"a timeout must be positive, not {timeout_s}; None means no limit")


def closed_error() -> ClientClosed:
    """For a call on a client that was closed."""
    return ClientClosed("the client is closed; make a new one")
