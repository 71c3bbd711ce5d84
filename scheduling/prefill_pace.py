"""How fast prompts have been computed lately, from start to first token."""

from dataclasses import dataclass

# Of the latest prompt in the mean.
_WEIGHT = 0.05


@dataclass(slots=True)
class PrefillPace:
    """A moving mean over tokens, so that long prompts count for what they are."""

    _seconds: float = 0.0
    _tokens: float = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A prompt of so many tokens that were not cached took so long."""
        self._seconds += _WEIGHT * (max(0.0, seconds) - self._seconds)
        self._tokens += _WEIGHT * (max(1, num_tokens) - self._tokens)

    def seconds(self, num_tokens: int) -> float:
        """Expected time of a prompt; 0 before any was seen."""
        return num_tokens * self._seconds / self._tokens if self._tokens else 0.0
