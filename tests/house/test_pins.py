"""constraints.txt pins everything that any extra brings, and nothing that the extras forbid."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("router", "worker", "embedded", "simulate", "test", "dev")


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Requirement]:
    """Pinned requirements by canonical name."""
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in pinned}


def version_of(pin: Requirement) -> str:
    """The one version that a pin allows."""
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} does not pin one version"
    return specifier.version


def test_every_pin_names_one_version(pins: dict[str, Requirement]) -> None:
    assert all(version_of(pin) for pin in pins.values())


def test_torch_is_pinned_for_every_build_of_it(pins: dict[str, Requirement]) -> None:
    assert "+" not in version_of(pins["torch"])


def test_pins_are_what_the_extras_ask_for(root: Path, pins: dict[str, Requirement]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for extra in EXTRAS for line in extras[extra]]
    asked = [Requirement(line) for line in lines]
    refused = [
        f"{requirement} is pinned to {pin}"
        for requirement in asked
        if canonicalize_name(requirement.name) != "tandemserve"
        and (pin := version_of(pins[canonicalize_name(requirement.name)]))
        and not requirement.specifier.contains(pin, prereleases=True)
    ]
    assert refused == []


def test_what_the_extras_bring_along_is_pinned_too(pins: dict[str, Requirement]) -> None:
    wanted = [("tandemserve", extra) for extra in EXTRAS]
    seen: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform or Python
        for needed in map(Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    installed = {name for name, _ in seen if name != "tandemserve"}
    assert sorted(installed - pins.keys()) == []
