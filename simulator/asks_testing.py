"""For tests: random requests for a simulated cluster, and random deaths of its workers."""

from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from simulator.testing import Ask

Prompt = tuple[int, ...]
Worker = TypeVar("Worker")


def prompts(max_size: int = 20, num_token_ids: int = 1000) -> SearchStrategy[Prompt]:
    """Any tokens; the fewer ids there are, the more prompts begin alike."""
    token_ids = st.integers(0, num_token_ids - 1)
    return st.lists(token_ids, min_size=1, max_size=max_size).map(tuple)


def prompts_of_families(
    num_families: int, max_shared: int, max_own: int, num_own_ids: int
) -> SearchStrategy[Prompt]:
    """The first tokens of one of so many documents, and a few of its own."""

    def prompt_of(family: int, num_shared: int, own: list[int]) -> Prompt:
        return (*range(100 * family, 100 * family + num_shared), *own)

    return st.builds(
        prompt_of,
        family=st.integers(1, num_families),
        num_shared=st.integers(1, max_shared),
        own=st.lists(st.integers(0, num_own_ids - 1), max_size=max_own),
    )


def asks(**fields: SearchStrategy[Any]) -> SearchStrategy[Ask]:
    """Short requests within 0.1 s: some with a deadline, some cancelled. `fields` of `Ask` differ
    from that."""
    usual: dict[str, SearchStrategy[Any]] = {
        "prompt": prompts(),
        "max_tokens": st.integers(1, 16),
        "num_choices": st.integers(1, 2),
        "at_s": st.floats(0, 0.1),
        "cancel_after_s": st.none() | st.floats(0, 0.2),
        "deadline_s": st.none() | st.floats(0.001, 0.3),
    }
    return st.builds(Ask, **(usual | fields))


def at_once(ask: Ask) -> Ask:
    """The same, but it comes at the very start."""
    return replace(ask, at_s=0.0)


def deaths(
    which: SearchStrategy[Worker], within_s: float = 0.2
) -> SearchStrategy[list[tuple[Worker, float]]]:
    """One to four times that a worker dies, and when.

    Never at the very start: what arrives at 0 s is not refused for want of a worker.
    """
    at_s = st.floats(0.001, 0.001 + within_s)
    return st.lists(st.tuples(which, at_s), min_size=1, max_size=4)
