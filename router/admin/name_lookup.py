"""From what an operator types to one request or worker: whole names, beginnings, or a hint."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cached_property
from itertools import takewhile

from scheduling.errors import InvalidRequest, UnknownName

# Of a request or a worker; what is longer is no name.
_MAX_CHARS = 128
_MAX_NAMED = 3
# Comparing is slow, the more so the longer both names are, and runs on the event loop: this is a
# few tens of milliseconds where all names are alike.
_MAX_COMPARED_PAIRS_OF_CHARS = 60_000


class NameLookup:
    """The names of one kind at one instant, for any number of questions.

    `kind` is "request" or "worker"; `advice` says where names can be looked up.
    """

    def __init__(self, kind: str, names: Iterable[str], advice: str) -> None:
        self._kind = kind
        self._names = dict.fromkeys(names)
        self._advice = advice

    def resolve(self, given: str) -> str:
        """The name that `given` is or that alone begins with it.

        Raises: UnknownName with the nearest name, InvalidRequest for a beginning of several.
        """
        kind, field = self._kind, f"{self._kind}_id"
        if not given:
            raise InvalidRequest(field, f"is empty; name a {kind}, {self._advice}")
        if len(given) > _MAX_CHARS:
            raise InvalidRequest(
                field,
                f"has {len(given)} characters, the name of a {kind} at most {_MAX_CHARS}; "
                f"{self._advice}",
            )
        if given in self._names:
            return given
        start = bisect_left(self._sorted, given)
        following = (self._sorted[index] for index in range(start, len(self._sorted)))
        beginning = list(takewhile(lambda name: name.startswith(given), following))
        if len(beginning) == 1:
            return beginning[0]
        if beginning:
            some = ", ".join(beginning[:_MAX_NAMED])
            more = ", …" if len(beginning) > _MAX_NAMED else ""
            raise InvalidRequest(
                field,
                f"{given!r} is the beginning of {len(beginning)} {kind}s ({some}{more}); type more "
                "of it",
            )
        near = get_close_matches(given, list(self._compared_with(given)), n=1)
        hint = f"did you mean {near[0]!r}? Else " if near else ""
        raise UnknownName(field, f"no {kind} {given!r} is known here; {hint}{self._advice}")

    @cached_property
    def _sorted(self) -> list[str]:
        """Only sorted when something is not a whole name."""
        return sorted(self._names)

    def _compared_with(self, given: str) -> Iterator[str]:
        left = _MAX_COMPARED_PAIRS_OF_CHARS
        for name in self._names:
            left -= len(given) * len(name)
            if left < 0:
                return
            yield name
