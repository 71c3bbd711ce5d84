"""What `tandem up` lets one choose without the launcher's own help page."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import typer

# The wheel holds no policies; a test compares the names.
POLICY_NAMES = (
    *("default", "ecoserve", "cacheopt", "fcfs", "orca", "sarathi", "vllm", "tgi"),
    *("distserve", "fastserve", "accelgen"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """How many processes there are, and how they are set; None leaves it to the launcher."""

    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder; the bundled model by default.")
    ] = None
    prefill: Annotated[
        int | None, typer.Option(min=0, help="Prefill workers; 1, or 0 beside --mixed.")
    ] = None
    decode: Annotated[
        int | None, typer.Option(min=0, help="Decode workers; 2, or 0 beside --mixed.")
    ] = None
    mixed: Annotated[
        int | None, typer.Option(min=0, help="Workers that do both; 0 by default.")
    ] = None
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="Where models run.")] = None
    redis: Annotated[str | None, typer.Option(help="URL; starts its own by default.")] = None
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the router.")] = 7700
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(POLICY_NAMES)}.")
    ] = None
    policy_set: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Change the policy: victims=last-arrived."),
    ] = None
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None
    kv_dtype: Annotated[str | None, typer.Option(help="Of the KV: the same, or fp8_e4m3.")] = None
    block_size: Annotated[int | None, typer.Option(min=1, help="Tokens per KV block.")] = None
    kv_cache_mib: Annotated[int | None, typer.Option(min=1, help="KV pool per worker.")] = None
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks per worker, instead of --kv-cache-mib.")
    ] = None
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Sequences in one iteration of a worker.")
    ] = None
    tensor_parallel_size: Annotated[
        int | None, typer.Option(min=1, help="Processes that share a worker's layers.")
    ] = None
    tensor_parallel_reduce: Annotated[
        Literal["gather", "sum"] | None,
        typer.Option(help="Same bits whatever their number, or less to move."),
    ] = None
    transports: Annotated[
        str | None, typer.Option(metavar="A,B", help="Ways to move KV, in order: gloo,tcp.")
    ] = None
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Longest context.")] = None
    log_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the logs of all processes there.")
    ] = None
    start_timeout_s: Annotated[
        float | None, typer.Option(help="How long loading may take; 600 by default.")
    ] = None
    cluster_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keeps clusters on one Redis apart.")
    ] = None

    def arguments(self) -> list[str]:
        """What was chosen, as the launcher takes it: its options have the names of the fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # All changes of a policy are one value of the launcher's.
        values["policy_set"] = ",".join(self.policy_set) if self.policy_set else None
        return [
            part
            for name, value in values.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", str(value))
        ]
