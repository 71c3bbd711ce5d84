"""The settings of every process: one frozen object each, parsed once, before anything else.

Defaults, then the file of --config, then TANDEM_<PROCESS>_<FIELD>, then flags. This is the only
file that reads the environment; `runtime/config_sources.py` reads and merges what it is given.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, SecretStr, model_validator

from runtime import config_sources
from runtime.policy_config import PolicyConfig
from scheduling.policy import DEADLINE_BUCKET_S, KVC_BUCKET_BLOCKS

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]
# Hosts that a server may listen on and no peer can dial.
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", "[::]"})


class ProcessConfig(PolicyConfig):
    """What all processes share. Values with a secret in them are masked wherever it is printed."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )
    # Names the environment variables, the log lines and the errors.
    process: ClassVar[str]

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on", examples=["0.0.0.0"]
    )
    model: Path = Field(
        description="model folder in the Hugging Face layout", examples=["/models/llama-3-8b"]
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        le=2**31 - 1,
        description="longest prompt plus answer, in tokens; default: the model's context. Routers "
        "and workers need the same where it decides how positions are rotated",
    )
    redis_url: str | None = Field(
        None,
        pattern=r"^(redis|rediss|unix)://",
        description="Redis or Valkey that all processes of the cluster share",
        examples=["redis://:password@localhost:6379/0"],
    )
    cluster_name: Name = Field(
        "tandem", description="processes of different names on one Redis never meet"
    )
    max_message_bytes: int = Field(
        64 * 1024 * 1024, ge=64 * 1024, le=1024**3, description="largest gRPC message"
    )
    lease_ttl_s: Seconds = Field(
        10.0, description="how long an entry in Redis outlives the process that renews it"
    )
    drain_timeout_s: Seconds = Field(
        30.0, description="how long running requests may go on after SIGTERM"
    )
    log_format: Literal["console", "json"] = Field("console", description="form of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line that is written"
    )

    def masked(self) -> dict[str, Any]:
        """All effective values as plain data, secrets hidden: for dumps and logs."""
        return config_sources.mask(self.model_dump(mode="json"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.masked()!r})"

    __str__ = __repr__


class RouterConfig(ProcessConfig):
    """Settings of a router replica."""

    process: ClassVar[str] = "router"

    router_id: Name = Field("router-0", description="name of this replica, unique in the cluster")
    port: int = Field(7700, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    served_model_name: str = Field(
        default_factory=config_sources.folder_name,
        min_length=1,
        description="name by which clients ask for the model; default: name of its folder",
        examples=["llama-3-8b"],
    )
    max_prompt_queue: int = Field(
        1024, ge=1, le=1_000_000, description="prompt tasks that may wait; more are refused"
    )
    max_prompt_mib: int = Field(
        1024,
        ge=1,
        le=16_777_216,
        description="memory for prompts above 16 KiB that wait or run, 14 bytes for each byte that "
        "arrived; more are refused",
    )
    max_stream_mib: int = Field(
        32,
        ge=1,
        le=65536,
        description="memory for the tokens of one running request; of what was sent the first are "
        "dropped beyond it, a request of which as much is unread is ended",
    )
    max_all_streams_mib: int | None = Field(
        None,
        ge=1,
        le=16_777_216,
        description="the same for all requests together, with finished ones kept for replay: that "
        "of which most is unread is ended; default: 32 times max_stream_mib",
    )
    deadline_bucket_ms: Milliseconds = Field(
        1e3 * DEADLINE_BUCKET_S, description="deadlines closer together than this count as equal"
    )
    kvc_bucket_blocks: int = Field(
        KVC_BUCKET_BLOCKS,
        ge=1,
        le=1_000_000,
        description="KVC occupancies closer than this count as equal",
    )
    lending: bool = Field(
        True,
        description="prompts may begin in KV blocks that running answers need only later, where "
        "the policy has it so",
    )
    interactive_ttft_ms: Milliseconds = Field(1000.0, description="TTFT goal of class interactive")
    interactive_tpot_ms: Milliseconds = Field(100.0, description="TPOT goal of class interactive")
    standard_ttft_ms: Milliseconds = Field(5000.0, description="TTFT goal of class standard")
    standard_tpot_ms: Milliseconds = Field(200.0, description="TPOT goal of class standard")
    batch_ttft_ms: Milliseconds = Field(600_000.0, description="TTFT goal of class batch")
    batch_tpot_ms: Milliseconds = Field(2000.0, description="TPOT goal of class batch")
    max_request_chars: int = Field(
        8_000_000, ge=1, le=256_000_000, description="longest prompt text, in characters"
    )
    worker_connect_timeout_s: Seconds = Field(
        5.0, description="how long a worker may take to answer the first call"
    )
    heartbeat_interval_s: Seconds = Field(
        0.5, description="how often a worker is asked for a sign of life"
    )
    heartbeat_timeout_s: Seconds = Field(
        3.0, description="silence after which a worker counts as lost, and the router to it"
    )
    max_retries_per_task: int = Field(
        3, ge=0, le=100, description="how often failed workers may make a task start again"
    )
    stream_coalesce_ms: float = Field(
        50.0,
        ge=0,
        le=1000,
        description="how long a busy router gathers tokens of a stream; an idle one never does",
    )
    tokenizer_threads: int = Field(2, ge=1, le=64, description="threads that tokenise prompts")
    record_dir: Path | None = Field(
        None,
        description="folder for a recording of all that the router decides, one file for each of "
        "its lives, to be replayed with `tandem replay`; it holds prompts and answers as token ids",
        examples=["/var/log/tandem"],
    )
    record_max_mib: int = Field(
        256, ge=1, le=1_048_576, description="size at which such a recording ends"
    )
    tls_cert: Path | None = Field(None, description="PEM file: certificate chain of the server")
    tls_key: Path | None = Field(None, description="PEM file: private key of tls_cert")
    tls_client_ca: Path | None = Field(
        None, description="PEM file: clients must show a certificate of this authority"
    )
    auth_token: SecretStr | None = Field(
        None, description="clients must send this bearer token", examples=["s3cret"]
    )

    @property
    def all_streams_mib(self) -> int:
        """The value, or the default that follows from max_stream_mib."""
        return self.max_all_streams_mib or 32 * self.max_stream_mib

    @model_validator(mode="after")
    def _one_stream_fits_among_all(self) -> Self:
        if self.all_streams_mib < self.max_stream_mib:
            raise ValueError(
                "max_all_streams_mib is below max_stream_mib; one request may take as much as that"
            )
        return self

    @model_validator(mode="after")
    def _heartbeats_fit_their_timeout(self) -> Self:
        if self.heartbeat_timeout_s < 2 * self.heartbeat_interval_s:
            raise ValueError(
                "heartbeat_timeout_s is below two heartbeats; set it to at least twice "
                "heartbeat_interval_s"
            )
        return self

    @model_validator(mode="after")
    def _tls_files_belong_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; set both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key; set them too")
        return self


AnyConfig = TypeVar("AnyConfig", bound=ProcessConfig)


def load_config(
    cls: type[AnyConfig], argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> AnyConfig:
    """Merge all sources into one config; --help and --dump-config print and exit with 0.

    `argv` comes without the name of the program.
    Raises: ConfigError, which names the setting and where its value came from.
    """
    environ = os.environ if environ is None else environ
    flags = config_sources.parse_flags(cls, cls.process, argv)
    merged = config_sources.merge(cls, cls.process, environ, flags)
    config = config_sources.validate(cls, cls.process, merged)
    if flags.dump_config:
        sys.stdout.write(config_sources.to_yaml(config.masked()))
        raise SystemExit(0)
    return config
