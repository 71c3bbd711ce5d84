import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.attention.paged_plan import plan_pages
from engine.attention.testing import scattered_batch

NUM_BLOCKS = 256


@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([1, 1, 2, 7, 16, 30])), min_size=1, max_size=6
    ),
    block_size=st.sampled_from([1, 5, 16]),
    data=st.data(),
)
def test_pages_and_lengths_are_those_of_the_sequences(
    pieces: list[tuple[int, int]], block_size: int, data: st.DataObject
) -> None:
    block_size = max(block_size, 5) if len(pieces) > 2 else block_size
    starts, counts = ([piece[i] for piece in pieces] for i in (0, 1))
    batch = scattered_batch(starts, counts, block_size, NUM_BLOCKS, seed=1)
    first = data.draw(st.integers(0, len(pieces) - 1))
    last = data.draw(st.integers(first + 1, len(pieces)))
    plan = plan_pages(batch, first, last, block_size)
    assert plan.indptr[0] == plan.qo_indptr[0] == 0
    assert plan.indptr[-1] == len(plan.indices)
    for index, row in enumerate(range(first, last)):
        length = int(batch.starts[row] + batch.num_queries[row])
        pages = plan.indices[plan.indptr[index] : plan.indptr[index + 1]]
        assert (len(pages) - 1) * block_size + plan.last_page_len[index] == length
        assert 1 <= plan.last_page_len[index] <= block_size
        assert pages.tolist() == batch.block_tables[row, : len(pages)].tolist()
        assert plan.qo_indptr[index + 1] - plan.qo_indptr[index] == batch.num_queries[row]
    arrays = (plan.qo_indptr, plan.indptr, plan.indices, plan.last_page_len)
    assert all(array.dtype == np.int32 for array in arrays)
