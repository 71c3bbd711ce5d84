"""Options that choose other rounds than the usual ones."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seed", type=int, help="run this round of chaos, and no other")
    parser.addoption("--chaos-size", default="short", help="of the round: short or long")
