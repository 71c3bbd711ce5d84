"""Equal names mean equal beginnings, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from simulator.traces.prefix_pieces import PieceNames, RunNames

Block = tuple[int, int]
PROMPTS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=6), min_size=2, max_size=6
)


@given(prompts=PROMPTS, piece_tokens=st.integers(1, 7))
def test_two_pieces_have_one_name_exactly_if_the_prompts_are_equal_up_to_there(
    prompts: list[list[Block]], piece_tokens: int
) -> None:
    # Blocks of one id have one size, as content has.
    prompts = [[(block_id, block_id + 1) for block_id, _ in prompt] for prompt in prompts]
    pieces = PieceNames(piece_tokens)
    named = [pieces.of_blocks([i for i, _ in p], [n for _, n in p]) for p in prompts]

    tokens = [[(i, k) for i, n in prompt for k in range(n)] for prompt in prompts]
    for a, names_a in zip(tokens, named, strict=True):
        assert len(names_a) == len(a) // piece_tokens
        for b, names_b in zip(tokens, named, strict=True):
            for place, (name_a, name_b) in enumerate(zip(names_a, names_b, strict=False)):
                end = (place + 1) * piece_tokens
                assert (name_a == name_b) == (a[:end] == b[:end])
    assert all(len(set(names)) == len(names) for names in named)


@given(runs=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8))
def test_runs_are_numbered_from_the_first_name_on(runs: list[Block]) -> None:
    names = RunNames(1000)

    expected = tuple(1000 + first + k for first, count in runs for k in range(count))
    assert names.of_runs(runs) == expected
    assert names.of_runs(runs) == expected
    assert names.num_names == max((first + count for first, count in runs), default=0)
