"""What is measured: every trace on every hardware under every policy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Others' rates and goals are taken from it, so it is run first.
REFERENCE = "fcfs"
HARDWARE = ("a100_opt13b", "h100_llama70b_tp4", "h200_llama8b_fp8")
# What says most comes first, so that an unfinished run is worth something.
POLICY_ORDER = (
    REFERENCE,
    "default",
    "oracle",
    "sarathi",
    "vllm",
    "ecoserve",
    "cacheopt",
    "accelgen",
    "orca",
    "tgi",
    "distserve",
    "fastserve",
)


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A file of the traces folder, and how it is read."""

    name: str
    # It has no arrivals: they are drawn, and stretched by the search.
    is_drawn: bool = False

    @property
    def stem(self) -> str:
        """How reports name it."""
        return self.name.partition(".")[0]


TRACES = (
    TraceFile("azure_2023_conv.csv.gz"),
    TraceFile("lengths_sharegpt.csv.gz", is_drawn=True),
    TraceFile("mooncake_conversation_first_half.jsonl.gz"),
    TraceFile("servegen_large_draw.csv.gz"),
    TraceFile("rag_campus_days1_5.jsonl.gz"),
    TraceFile("lengths_chat_lmsys.csv.gz", is_drawn=True),
    TraceFile("lengths_arxiv_summarization.csv.gz", is_drawn=True),
    TraceFile("lengths_story_writing.csv.gz", is_drawn=True),
    TraceFile("coding_assistant.jsonl.gz"),
    TraceFile("servegen_reasoning_draw.csv.gz"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """What a load is made from."""

    trace: TraceFile
    hardware: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement, by the names under which it is kept."""

    trace: str
    hardware: str
    policy: str


def pairs(traces: Sequence[TraceFile], hardware: Sequence[str]) -> list[Pair]:
    """Every trace on every hardware; after n pairs, n traces have had their turn."""
    rounds = range(len(hardware))
    return [
        Pair(trace, hardware[(number + shift) % len(hardware)])
        for shift in rounds
        for number, trace in enumerate(traces)
    ]


def in_order(policies: Iterable[str]) -> list[str]:
    """The reference first, whether asked for or not; names that are not listed come last."""
    asked = dict.fromkeys((REFERENCE, *policies))
    known = [name for name in POLICY_ORDER if name in asked]
    return [*known, *(name for name in asked if name not in POLICY_ORDER)]
