"""What two workers must have in common to exchange KV, by name: a router says what differs."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import torch

from engine.kv_pool import BLOCK_ORDER, KvLayout
from kvtransfer.tcp_frames import VERSION as KV_VERSION
from runtime.worker_config import WorkerConfig
from scheduling.messages import PROTOCOL_VERSION


def traits_of(
    config: WorkerConfig, layout: KvLayout, weights: str, arithmetic: str, dtype: str
) -> tuple[str, ...]:
    """Each as NAME=VALUE; `layout` of one rank, `weights` their fingerprint, `dtype` the model's.

    Ranks may divide KV heads as they like.
    """
    size = config.tensor_parallel_size
    whole = replace(
        layout,
        num_kv_heads=layout.num_kv_heads * size,
        head_groups=layout.head_groups * size,
    )
    return (
        f"weights={weights}",
        f"layers={whole.num_layers}",
        f"KV heads={whole.num_kv_heads}",
        f"head size={whole.head_dim}",
        f"block size={whole.block_size}",
        f"dtype={dtype}",
        f"KV dtype={whole.dtype}",
        f"KV slices={config.num_kv_slices}",
        f"KV head groups={whole.head_groups}",
        f"order within blocks={BLOCK_ORDER}",
        # Pools of different kinds exchange no KV: they verify it by different checksums.
        f"device={config.device}",
        # A sequence that moves must go on with the very same bits, and elementwise kernels round as
        # the build of torch and the processor have them.
        f"arithmetic={arithmetic}",
        f"torch={torch.__version__}",
        f"CPU capability={torch.backends.cpu.get_cpu_capability()}",
        f"worker protocol={PROTOCOL_VERSION}",
        f"KV wire version={KV_VERSION}",
    )


def compatibility_of(traits: Sequence[str]) -> str:
    """Equal where all traits are."""
    return blake2b(repr(tuple(traits)).encode(), digest_size=8).hexdigest()
