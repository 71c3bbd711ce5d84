"""How fast tokens have been coming lately: of prompts from start to first token, of answers."""

from dataclasses import dataclass

# Of the latest prompt or answer in the mean.
_WEIGHT = 0.05


@dataclass(slots=True)
class TokenPace:
    """A moving mean over tokens, so that long prompts and answers count for what they are."""

    _seconds: float = 0.0
    _tokens: float = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """So many tokens, of a prompt those that were not cached, took so long."""
        self._seconds += _WEIGHT * (max(0.0, seconds) - self._seconds)
        self._tokens += _WEIGHT * (max(1, num_tokens) - self._tokens)

    def seconds(self, num_tokens: int) -> float:
        """Expected time of so many; 0 before any were seen."""
        return num_tokens * self._seconds / self._tokens if self._tokens else 0.0
