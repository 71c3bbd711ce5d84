"""From what an operator types to one request or worker: whole names, beginnings, or a hint."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from scheduling.errors import InvalidRequest, UnknownName

# Comparing is slow and runs on the event loop.
_MAX_COMPARED = 500
_MAX_NAMED = 3


def resolve(kind: str, given: str, names: Iterable[str], advice: str) -> str:
    """The name that `given` is or that alone begins with it; `kind` is "request" or "worker".

    Raises: UnknownName with the nearest name, InvalidRequest for a beginning of several.
    """
    field = f"{kind}_id"
    if not given:
        raise InvalidRequest(field, f"is empty; name a {kind}, {advice}")
    names = dict.fromkeys(names)
    if given in names:
        return given
    beginning = sorted(name for name in names if name.startswith(given))
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
    near = get_close_matches(given, islice(names, _MAX_COMPARED), n=1)
    hint = f"did you mean {near[0]!r}? Else " if near else ""
    raise UnknownName(field, f"no {kind} {given!r} is known here; {hint}{advice}")
