"""The kinds of numbers that a KV pool may hold, and how a number becomes one of them.

Why FP8 has no scales: docs/decisions/kv-in-fewer-bits.md.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

KV_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
}


def dtype_name(dtype: torch.dtype) -> str:
    """Inverse of KV_DTYPES. Raises: ValueError for a dtype that no pool has."""
    for name, known in KV_DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"{dtype} is no dtype of KV; use one of {sorted(KV_DTYPES)}")


def round_to(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`rows` in a pool's dtype, to the nearest number that it has.

    In FP8 what is beyond +-448 becomes +-448. Infinity becomes no number, as a pass that overflowed
    has to end in LogitsNotFinite and not in a wrong token.
    """
    if dtype != torch.float8_e4m3fn:
        return rows.to(dtype)
    # By hand: versions of torch and devices differ in what they make of numbers beyond the range.
    most = torch.finfo(dtype).max
    limited = rows.clamp(-most, most)
    return limited.masked_fill_(rows.isinf(), torch.nan).to(dtype)
