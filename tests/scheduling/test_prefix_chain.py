"""Equal names exactly where block and history are equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.prefix_chain import PromptPrefix, chain_root, extend_chain, prefix_key
from scheduling.prefix_index import PrefixChanges, PrefixIndex, PrefixJournal

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40).map(tuple)


@given(tokens, tokens, st.integers(1, 5))
def test_two_chains_agree_exactly_as_far_as_the_tokens_do(
    one: tuple[int, ...], two: tuple[int, ...], block_size: int
) -> None:
    a, b = (extend_chain(chain_root(), each, block_size) for each in (one, two))
    assert len(a) == len(one) // block_size
    for number, (left, right) in enumerate(zip(a, b, strict=False), 1):
        end = number * block_size
        assert (left == right) == (one[:end] == two[:end])


@given(tokens, st.integers(1, 5), st.integers(0, 8))
def test_a_chain_is_the_same_computed_at_once_or_in_pieces(
    token_ids: tuple[int, ...], block_size: int, num_first: int
) -> None:
    cut = num_first * block_size
    first = extend_chain(chain_root(), token_ids[:cut], block_size)
    parent = first[-1] if first else chain_root()
    rest = extend_chain(parent, token_ids[cut:], block_size)
    assert first + rest == extend_chain(chain_root(), token_ids, block_size)


def test_requests_of_different_salts_share_nothing() -> None:
    shared = PromptPrefix((1, 2, 3, 4)).keys(2)
    salted = PromptPrefix((1, 2, 3, 4), "tenant-a").keys(2)
    assert len(shared) == len(salted) == 2
    assert not set(shared) & set(salted)


def test_a_known_prompt_has_the_name_that_every_version_gives_it() -> None:
    """Workers and routers of different machines compare these."""
    (block_hash,) = extend_chain(chain_root(), range(16), 16)
    assert block_hash.hex() == "724f387046a7ef1970878eae3ed5c2d2"
    assert prefix_key(block_hash) == int.from_bytes(block_hash[:8], "little")


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(1, 7))
def test_an_index_that_is_told_in_batches_knows_what_is_there(
    notes: list[tuple[int, bool]], batch: int
) -> None:
    journal, index = PrefixJournal(), PrefixIndex(6)
    there: set[int] = set()
    for number, (key, is_there) in enumerate(notes):
        if (key in there) is not is_there:
            journal.note(key, is_there)  # type: ignore[arg-type]
            (there.add if is_there else there.remove)(key)
        if number % batch == 0:
            index.apply(journal.take())
    index.apply(journal.take())
    assert all(index.num_hits([key]) == (key in there) for key in range(6))  # type: ignore[list-item]


def test_prompts_on_their_way_count_as_hits_until_they_are_gone() -> None:
    index = PrefixIndex(8)
    keys = PromptPrefix(tuple(range(8))).keys(2)
    index.expect(keys)
    index.expect(keys[:2])
    assert index.num_hits(keys) == 4
    index.expect_no_more(keys)
    assert index.num_hits(keys) == 2
    index.expect_no_more(keys[:2])
    assert (index.num_hits(keys), index.num_expected) == (0, 0)


def test_a_snapshot_replaces_what_was_known_and_a_worker_cannot_fill_the_routers_memory() -> None:
    index = PrefixIndex(3)
    keys = PromptPrefix(tuple(range(12))).keys(2)
    index.apply(PrefixChanges(added=keys))
    assert len(index) == 3
    index.apply(PrefixChanges(added=keys[:1], is_snapshot=True))
    assert (len(index), index.num_hits(keys)) == (1, 1)


def test_token_ids_beyond_32_bits_are_a_defect_of_the_caller() -> None:
    with pytest.raises(OverflowError):
        extend_chain(chain_root(), (2**32,), 1)
