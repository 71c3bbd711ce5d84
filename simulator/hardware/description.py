"""Hardware descriptions: one JSON file says how fast a worker computes, moves and holds KV.

`--hardware` takes the name of a file in this folder, an alias, or the path of a file of your own.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scheduling.batch_time import BatchTime, SwapTimeModel, TransferTimeModel

FOLDER = Path(__file__).resolve().parent
ALIASES = {"a100": "a100_opt13b", "h100": "h100_llama70b_tp4", "h200": "h200_llama8b_fp8"}

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class HardwareUnreadable(ValueError):
    """A description is not there, or says something that cannot be."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"hardware {where}: {problem}")
        self.where, self.problem = where, problem


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Bend(_Part):
    """From this many tokens in a pass on, each costs so much more."""

    tokens: Annotated[int, Field(ge=0)]
    s_per_token: Seconds


class BatchTimePart(_Part):
    """The coefficients of `scheduling.batch_time.BatchTime`, by the same names."""

    fixed_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    bends: tuple[Bend, ...]
    prompt_fixed_s: Seconds
    per_sequence_s: Seconds
    per_context_token_s: Seconds
    per_prompt_pair_s: Seconds
    per_context_token_beside_prompt_s: Seconds
    per_sequence_and_prompt_token_s: Seconds

    @classmethod
    def of(cls, model: BatchTime) -> "BatchTimePart":
        """The other way round, for files that are written. Bends without effect are left out."""
        return cls(
            fixed_s=model.fixed_s,
            bends=tuple(Bend(tokens=t, s_per_token=s) for t, s in model.bends if s > 0),
            prompt_fixed_s=model.prompt_fixed_s,
            per_sequence_s=model.per_sequence_s,
            per_context_token_s=model.per_context_token_s,
            per_prompt_pair_s=model.per_prompt_pair_s,
            per_context_token_beside_prompt_s=model.per_context_token_beside_prompt_s,
            per_sequence_and_prompt_token_s=model.per_sequence_and_prompt_token_s,
        )

    def model(self) -> BatchTime:
        """Raises: ValueError when the bends do not ascend."""
        return BatchTime(
            fixed_s=self.fixed_s,
            bends=tuple((bend.tokens, bend.s_per_token) for bend in self.bends),
            prompt_fixed_s=self.prompt_fixed_s,
            per_sequence_s=self.per_sequence_s,
            per_context_token_s=self.per_context_token_s,
            per_prompt_pair_s=self.per_prompt_pair_s,
            per_context_token_beside_prompt_s=self.per_context_token_beside_prompt_s,
            per_sequence_and_prompt_token_s=self.per_sequence_and_prompt_token_s,
        )


class CopyPart(_Part):
    """A way for bytes, of all GPUs of a worker together."""

    latency_s: Seconds
    gb_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    def model(self) -> TransferTimeModel:
        return TransferTimeModel(self.latency_s, self.gb_per_s * 1e9)


class KvPart(_Part):
    """What a worker holds beside its weights."""

    capacity_tokens: Count
    bytes_per_token: Count
    block_size: Count


class LimitsPart(_Part):
    """Of one iteration."""

    max_num_seqs: Count
    max_num_batched_tokens: Count


class TableError(_Part):
    """How far the model is from one table that it was fitted to or checked with."""

    table: str
    num_rows: Count
    median_relative_error: Seconds
    p90_relative_error: Seconds


class Hardware(_Part):
    """One worker: some GPUs that hold one model together."""

    name: str
    model: str
    gpus_per_worker: Count
    # Where every figure is from, and which are assumed rather than measured.
    source: tuple[str, ...] = Field(min_length=1)
    assumed: tuple[str, ...]
    batch_time: BatchTimePart
    kv: KvPart
    limits: LimitsPart
    # Prefill to decode inside a node, and between nodes.
    transfer: CopyPart
    transfer_between_nodes: CopyPart
    # KV to host memory, and the same back.
    swap: CopyPart
    errors: tuple[TableError, ...] = ()

    def batch_time_model(self) -> BatchTime:
        return self.batch_time.model()

    def swap_model(self) -> SwapTimeModel:
        return SwapTimeModel(self.swap.model(), self.swap.model())

    @property
    def num_kv_blocks(self) -> int:
        return self.kv.capacity_tokens // self.kv.block_size


def known_names() -> list[str]:
    """Names that `load_hardware` takes besides paths."""
    return sorted([*ALIASES, *(path.stem for path in FOLDER.glob("*.json"))])


def load_hardware(name_or_path: str) -> Hardware:
    """The description of that name, alias or file. Raises: HardwareUnreadable."""
    shipped = FOLDER / f"{ALIASES.get(name_or_path, name_or_path)}.json"
    is_path = name_or_path.endswith(".json") or "/" in name_or_path
    path = Path(name_or_path) if is_path else shipped
    if not is_path and not path.is_file():
        raise HardwareUnreadable(
            name_or_path, f"no such name; give the path of a file, or one of {_listed()}"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({error}); give a JSON file, or one of {_listed()}"
        raise HardwareUnreadable(name_or_path, problem) from error
    return read_hardware(text, name_or_path)


def read_hardware(text: str, where: str) -> Hardware:
    """A description from JSON; `where` names it in errors. Raises: HardwareUnreadable."""
    try:
        hardware = Hardware.model_validate_json(text)
        hardware.batch_time_model()
    except ValidationError as error:
        raise HardwareUnreadable(where, _first_problems(error)) from error
    except ValueError as error:
        raise HardwareUnreadable(where, f"batch_time: {error}") from error
    if hardware.num_kv_blocks < 1:
        raise HardwareUnreadable(where, "kv.capacity_tokens: less than one block; raise it")
    return hardware


def _listed() -> str:
    return ", ".join(known_names())


def _first_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    told = [
        f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
        for problem in problems[:3]
    ]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{'; '.join(told)}{more}; correct these fields (those of any shipped file will do)"
