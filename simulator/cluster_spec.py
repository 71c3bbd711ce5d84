"""How many workers of which role a simulated cluster has, and how users write it."""

import re
from dataclasses import dataclass

_ROLES = ("prefill", "decode", "mixed")
_MAX_WORKERS = 100_000


class ClusterSpecInvalid(ValueError):
    """The text names no cluster that could answer anything."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(
            f"--cluster {text!r}: {problem}; write for example 8, mixed:8 or prefill:3,decode:5"
        )
        self.text = text


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Workers by role."""

    num_prefill: int = 0
    num_decode: int = 0
    num_mixed: int = 0

    @property
    def num_workers(self) -> int:
        """All of them."""
        return self.num_prefill + self.num_decode + self.num_mixed

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """Roles that there are workers of, and how many."""
        pairs = zip(_ROLES, (self.num_prefill, self.num_decode, self.num_mixed), strict=True)
        return tuple((role, count) for role, count in pairs if count)

    @property
    def text(self) -> str:
        """As users write it."""
        return ",".join(f"{role}:{count}" for role, count in self.counts)


def cluster_for(text: str, *, is_disaggregated: bool) -> ClusterSpec:
    """The cluster a policy gets. Raises: ClusterSpecInvalid.

    A bare number is so many workers as the policy was made for: mixed ones, or half of them for
    prefill, rounded down, and at least one of each role.
    """
    if text.isdecimal():
        count = _checked_count(text, text)
        if not is_disaggregated:
            return ClusterSpec(num_mixed=count)
        if count < 2:
            raise ClusterSpecInvalid(text, "prefill and decode on separate workers need two")
        return ClusterSpec(num_prefill=count // 2, num_decode=count - count // 2)
    counts = dict.fromkeys(_ROLES, 0)
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+):(\d+)\s*", part)
        if match is None or match[1] not in counts:
            raise ClusterSpecInvalid(text, f"{part.strip()!r} is no ROLE:NUMBER")
        if counts[match[1]]:
            raise ClusterSpecInvalid(text, f"{match[1]} is there twice")
        counts[match[1]] = _checked_count(text, match[2])
    spec = ClusterSpec(counts["prefill"], counts["decode"], counts["mixed"])
    if not spec.num_mixed and not (spec.num_prefill and spec.num_decode):
        raise ClusterSpecInvalid(text, "it needs a prefill and a decode worker, or a mixed one")
    return spec


def _checked_count(text: str, number: str) -> int:
    if len(number) > 6 or not 1 <= int(number) <= _MAX_WORKERS:
        raise ClusterSpecInvalid(text, f"{number} is not from 1 to {_MAX_WORKERS}")
    return int(number)
