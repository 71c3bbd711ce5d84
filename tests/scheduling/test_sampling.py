"""What a request that names no seed draws with."""

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scheduling.ids import RequestId
from scheduling.sampling import seed_of


def test_the_seed_of_an_id_never_changes() -> None:
    """Routers of several versions serve one request: the figures are part of the contract."""
    assert seed_of(RequestId("abc")) == int("ba7816bf8f01cf", 16) >> 3
    assert seed_of(RequestId("twice")) == 7_760_351_859_107_547


@given(st.text(max_size=128))
def test_it_is_the_beginning_of_the_sha_256_of_the_id(text: str) -> None:
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert seed_of(RequestId(text)) == int(digest[:14], 16) >> 3
    assert seed_of(RequestId(text)) < 2**53


def test_ids_that_differ_little_have_seeds_that_differ_much() -> None:
    """Answer i of a request draws with the seed plus i: neighbours would share their answers."""
    seeds = sorted(seed_of(RequestId(f"request-{number}")) for number in range(1000))
    assert min(b - a for a, b in pairwise(seeds)) > 16
