"""What `value` makes of a class."""

from dataclasses import field, replace

import pytest

from scheduling.value import value


@value
class Place:
    """Has a field of each kind."""

    name: str
    row: int = 0
    tags: list[str] = field(default_factory=list)


@value
class Point:
    """Can be a key."""

    x: int
    y: int


def test_values_with_equal_fields_are_equal_and_one_key() -> None:
    point = Point(1, 2)
    assert point == replace(Point(1, 3), y=2) != Point(2, 1)
    assert {point: "here"}[Point(1, 2)] == "here"


def test_each_value_has_defaults_of_its_own() -> None:
    first, second = Place("a"), Place("b")
    first.tags.append("x")
    assert (first.row, second.tags) == (0, [])


def test_a_value_has_no_room_for_what_its_class_does_not_name() -> None:
    name = "z"
    with pytest.raises(AttributeError):
        setattr(Point(1, 2), name, 3)


def test_only_the_type_checker_refuses_to_set_a_field() -> None:
    point = Point(1, 2)
    # Were it not refused, mypy would complain of a comment that ignores nothing.
    point.x = 3  # type: ignore[misc]
    assert point.x == 3
