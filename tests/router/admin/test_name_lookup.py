"""What operators type becomes one name, or an error that helps."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.admin.name_lookup import NameLookup
from scheduling.errors import InvalidRequest, UnknownName

WORKERS = ("decode-0", "decode-1", "decode-10", "prefill-0")


def resolve(kind: str, given: str, names: Iterable[str], advice: str) -> str:
    return NameLookup(kind, names, advice).resolve(given)


def test_a_whole_name_wins_over_a_beginning_of_others() -> None:
    assert resolve("worker", "decode-1", WORKERS, "look") == "decode-1"


def test_a_beginning_of_one_name_is_that_name() -> None:
    assert resolve("worker", "p", WORKERS, "look") == "prefill-0"


def test_a_beginning_of_several_names_is_refused_with_the_names() -> None:
    with pytest.raises(InvalidRequest, match=r"beginning of 3 workers .decode-0, decode-1, deco"):
        resolve("worker", "dec", WORKERS, "look")


def test_an_unknown_name_gets_the_nearest_as_a_hint() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'decode-0'. Else look at the list"):
        resolve("worker", "decod-0", WORKERS, "look at the list")
    with pytest.raises(UnknownName, match="no worker 'zzz' is known here; look at the list"):
        resolve("worker", "zzz", WORKERS, "look at the list")


def test_nothing_is_no_name() -> None:
    with pytest.raises(InvalidRequest, match="is empty; name a request, look"):
        resolve("request", "", ("a",), "look")


@settings(deadline=None)
@given(st.lists(st.text("ab-", max_size=4), max_size=6), st.text("ab-", max_size=4))
def test_the_answer_is_a_known_name_that_begins_so(names: list[str], typed: str) -> None:
    try:
        found = resolve("request", typed, names, "look")
    except InvalidRequest:
        matching = {name for name in names if name.startswith(typed)}
        assert typed not in names or not typed
        assert not typed or len(matching) != 1
    else:
        assert found in names
        assert found.startswith(typed)


def test_what_is_longer_than_any_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidRequest, match=r"3000000 characters, .* at most 128; look") as e:
        resolve("request", "x" * 3_000_000, WORKERS, "look")
    assert len(str(e.value)) < 200


def test_a_hint_comes_from_so_few_long_names_that_nobody_waits_for_it() -> None:
    others = [f"{number:0128}" for number in range(1000)]
    near, typed = "a" * 128, "a" * 127 + "b"
    with pytest.raises(UnknownName, match="did you mean 'aaa"):
        resolve("request", typed, [near, *others], "look")
    with pytest.raises(UnknownName, match="is known here; look"):
        resolve("request", typed, [*others, near], "look")


def test_one_lookup_answers_a_thousand_beginnings() -> None:
    names = [f"{number:04}-rest" for number in range(1000)]
    lookup = NameLookup("request", reversed(names), "look")
    assert [lookup.resolve(name[:5]) for name in names] == names
