"""Traces that come with the simulator, by name; README.md beside them has source and licence."""

from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Sample:
    """A small part of a public trace."""

    name: str
    path: Path
    # For people: what it is, where it is from and under which licence.
    about: str


AZURE_2023_CONV = Sample(
    "azure_2023_conv",
    _FOLDER / "azure_2023_conv.csv",
    "the first 1,000 requests of Azure's public LLM inference trace of 2023 (conversations; "
    "Microsoft, CC BY 4.0)",
)
SAMPLES = {sample.name: sample for sample in (AZURE_2023_CONV,)}


def sample_named(trace: Path | None) -> Sample | None:
    """The sample meant by `trace`: a name that no file has; without any, the first sample."""
    if trace is None:
        return AZURE_2023_CONV
    return None if trace.exists() else SAMPLES.get(str(trace))
