"""The settings of workers; how they are parsed is in runtime/config.py."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from runtime.config import WILDCARD_HOSTS, Name, ProcessConfig, Seconds


class WorkerConfig(ProcessConfig):
    """Settings that both kinds of worker have; each process parses its own subclass."""

    worker_id: Name = Field(description="name of this worker, unique in the cluster")
    role: Literal["prefill", "decode", "mixed"] = Field(description="what the worker computes")
    port: int = Field(0, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    advertise_host: str | None = Field(
        None,
        min_length=1,
        description="address under which routers reach this worker; default: host",
        examples=["10.0.0.7"],
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the model runs")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of the weights and of what is computed; auto: the model's own, but "
        "float32 for float16 on a CPU, which has no fast path for it",
    )
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16", "fp8_e4m3"] = Field(
        "auto",
        description="type of the KV; auto: as dtype. fp8_e4m3 halves KV of 16 bits and its "
        "transfer, and rounds it to three bits behind the leading one, beyond 448 to 448. Workers "
        "that exchange KV need the same",
    )
    attention: Literal["auto", "torch", "native", "flashinfer"] = Field(
        "auto",
        description="attention kernels; auto: flashinfer on cuda, native where a C compiler is "
        "installed, else torch, which compiles nothing. Workers that exchange KV need the same",
    )
    shared_prefix_attention: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="whether KV blocks that several answers begin with are read once for all of "
        "them; auto: where no number changes by it, which is with native attention; yes: with "
        "flashinfer as well, where all workers that exchange KV need it then, and a token may "
        "depend on what is beside it in a batch",
    )
    row_kernels: Literal["auto", "torch", "flashinfer"] = Field(
        "auto",
        description="on a GPU, what computes norms, gates and the rotation of heads; auto: "
        "flashinfer where it is installed and dtype has 16 bits, else torch. Workers that exchange "
        "KV need the same",
    )
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, record the work between attentions once for passes of up to "
        "max_num_seqs tokens, and replay it",
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens in a KV block")
    kv_cache_mib: int = Field(
        256,
        ge=1,
        le=16_777_216,
        description="memory of the KV cache; num_blocks overrides it, and on a GPU where neither "
        "is set kv_memory_fraction",
    )
    kv_memory_fraction: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of a GPU's memory that may be in use in all: weights, the largest pass, "
        "which is measured at the start, and KV in the rest",
    )
    num_blocks: int | None = Field(
        None, ge=1, le=2**31 - 1, description="KV blocks; default: what fits in kv_cache_mib"
    )
    max_num_seqs: int = Field(64, ge=1, le=65_536, description="sequences in one iteration")
    prefix_caching: bool = Field(
        True, description="keep KV of prompts and answers for requests that begin alike"
    )
    max_num_batched_tokens: int = Field(
        1024, ge=1, le=1_048_576, description="tokens in one iteration"
    )
    num_threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads of the engine; default: the cores available"
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="processes among which every layer of the model, its KV and num_threads are "
        "divided; on cuda each has a GPU",
    )
    tensor_parallel_reduce: Literal["gather", "sum"] = Field(
        "gather",
        description="how these processes come to numbers that need all of them; gather: with the "
        "bits of one process; sum: they exchange less, and numbers have other bits, which the next "
        "worker of a request must share: all workers then need this and the same "
        "tensor_parallel_size",
    )
    shared_cores: Path | None = Field(
        None,
        description="file through which engines of one machine divide its cores: one that is busy "
        "alone takes them all; default: each keeps to num_threads",
    )
    transports: tuple[Name, ...] = Field(
        ("shared_memory", "tcp"),
        min_length=1,
        description="ways to move KV: offered by a decode worker, tried in this order by a prefill "
        "worker; by default cuda_ipc,tcp with device cuda",
        examples=["shared_memory,tcp", "nixl,tcp", "cuda_ipc,nccl,tcp"],
    )
    kv_host: str | None = Field(
        None,
        min_length=1,
        description="address on which a decode worker listens for KV over the network; default: "
        "host",
        examples=["10.1.0.7"],
    )
    kv_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port to listen on for KV over tcp; nixl, gloo and nccl take the three after "
        "it; 0 picks free ones",
    )
    kv_advertise_host: str | None = Field(
        None,
        min_length=1,
        description="address under which prefill workers reach kv_host; default: kv_host, or what "
        "routers are told",
    )
    kv_tcp_zerocopy: Literal["auto", "never"] = Field(
        "auto",
        description="whether the kernel may send KV over TCP from where it lies; auto: where one "
        "send on the connection has shown that it does so",
    )
    kv_slices: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="into how many slices of some heads each KV blocks are cut on their way: a "
        "multiple of every worker's tensor_parallel_size that divides the model's KV heads. All "
        "workers of a cluster need the same; default: the worker's own tensor_parallel_size",
    )
    kv_checksum_fraction: float = Field(
        0.05, ge=0, le=1, description="share of moved KV blocks whose checksum is verified"
    )
    kv_arrival_timeout_s: Seconds = Field(
        10.0, description="how long admitted blocks wait for their KV after the start of decode"
    )
    engine_stall_s: Seconds = Field(
        30.0, description="how long one turn of the engine may take before it counts as stuck"
    )
    engine_stall_per_token_s: float = Field(
        0.5, ge=0, le=3600, description="on top of engine_stall_s, for each token of the turn"
    )
    push_timeout_s: Seconds = Field(10.0, description="how long one push of KV may take")
    max_push_backlog: int = Field(
        256, ge=1, le=1_000_000, description="KV pushes that may wait; more hold prefill back"
    )

    @property
    def num_kv_slices(self) -> int:
        """The value, or the default that follows from tensor_parallel_size."""
        return self.kv_slices or self.tensor_parallel_size

    @property
    def reachable_host(self) -> str:
        """The host part of the address that is registered."""
        return self.advertise_host or self.host

    @property
    def reachable_kv_host(self) -> str:
        """The host part of the address to which prefill workers send KV."""
        return self.kv_advertise_host or self.kv_host or self.reachable_host

    @model_validator(mode="after")
    def _address_can_be_dialled(self) -> Self:
        if self.reachable_host in WILDCARD_HOSTS:
            raise ValueError(
                f"host {self.reachable_host} cannot be dialled; set advertise_host as well"
            )
        if self.reachable_kv_host in WILDCARD_HOSTS:
            raise ValueError(
                f"kv_host {self.reachable_kv_host} cannot be dialled; set kv_advertise_host as well"
            )
        return self


class PrefillConfig(WorkerConfig):
    """Settings of a prefill worker."""

    process: ClassVar[str] = "prefill"
    worker_id: Name = Field("prefill-0", description="name of this worker, unique in the cluster")
    role: Literal["prefill"] = Field("prefill", description="what the worker computes")
    kv_overlap: Literal["auto", "chunk", "whole"] = Field(
        "auto",
        description="when KV goes to the decode worker; chunk: after every pass of a prompt; "
        "whole: once all of it is computed; auto: after those passes by which it arrives sooner, "
        "by what pushes and passes take, and a long pass may be cut for that",
    )
    min_kv_bytes_per_s: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="refuse to push KV to a decode worker when the way to it is measured to be "
        "slower; 0: never refuse",
        examples=[1_000_000_000],
    )


class DecodeConfig(WorkerConfig):
    """Settings of a decode worker."""

    process: ClassVar[str] = "decode"
    worker_id: Name = Field("decode-0", description="name of this worker, unique in the cluster")
    role: Literal["decode", "mixed"] = Field(
        "decode", description="what the worker computes; mixed: prompts as well, in place"
    )
    plan_ahead: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="while a pass of answers runs, plan and order the next, so that a GPU need not "
        "wait for the host; auto: on cuda. Not with tensor_parallel_size above 1, nor with a "
        "policy whose answers take turns",
    )
    preemption: Literal["auto", "cheaper", "first", "swap", "recompute"] = Field(
        "auto",
        description="how a sequence makes room: its KV moves to host memory or is computed again, "
        "as the policy has it (auto), whichever costs less by measurement (cheaper), to host "
        "memory where that has room for the policy's first choice (first) or for any (swap), or "
        "always again",
    )
    swap_mib: int = Field(
        256, ge=0, le=16_777_216, description="host memory for KV of such sequences; 0: none"
    )
    swap_bytes_per_s: int = Field(
        4_000_000_000,
        ge=1,
        le=2**63 - 1,
        description="how fast KV is copied to host memory and back, assumed before the first copy",
        examples=[25_000_000_000],
    )
    growth_reserve: float | None = Field(
        None,
        ge=0,
        le=0.5,
        description="share of the KV blocks that new answers may not take, so that running ones "
        "can outgrow their prediction; default: as the policy has it",
        examples=[0.0625],
    )
