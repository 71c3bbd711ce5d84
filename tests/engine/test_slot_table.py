import numpy as np
import pytest

from engine.runner import InvalidSequence, UnknownSlot
from engine.slot_table import SlotTable
from scheduling.sampling import SamplingParams
from scheduling.step import SequenceStart


def test_the_first_output_token_has_index_0_and_a_handed_over_one_continues() -> None:
    table = SlotTable(max_num_seqs=3, block_size=4)
    table.add(SequenceStart(1, (5, 6, 7), 3, SamplingParams(seed=-1), (0,)))
    table.add(SequenceStart(2, (5, 6, 7, 8, 9), 3, SamplingParams(seed=2**64 + 3), (1, 2)))
    slots = np.array([2, 1])
    assert table.sampling_of(slots).output_index.tolist() == [2, 0]
    assert table.sampling_of(slots).seed.tolist() == [3, 2**64 - 1]
    table.append(slots, np.array([30, 31]))
    assert table.sampling_of(slots).output_index.tolist() == [3, 1]
    assert table.tokens[1, :4].tolist() == [5, 6, 7, 31]
    assert table.num_tokens[slots].tolist() == [6, 4]


def test_unused_block_entries_repeat_the_first_block_of_the_sequence() -> None:
    table = SlotTable(max_num_seqs=2, block_size=64)
    table.add(SequenceStart(0, (1,), 1, SamplingParams(), ()))
    table.extend_blocks(0, [7, 8])
    assert table.blocks[0].tolist() == [7, 8, *[7] * (table.blocks.shape[1] - 2)]
    table.extend_blocks(0, [20, 21, 22])
    assert table.blocks[0, :7].tolist() == [7, 8, 20, 21, 22, 7, 7]
    assert table.num_blocks[0] == 5


def test_blocks_are_replaced_where_they_are_and_nowhere_else() -> None:
    table = SlotTable(max_num_seqs=2, block_size=64)
    table.add(SequenceStart(0, (1,), 1, SamplingParams(), (7, 8, 9)))
    table.replace_blocks(0, 1, [20])
    assert table.blocks[0, :4].tolist() == [7, 20, 9, 7]
    table.replace_blocks(0, 0, [30, 31])
    assert table.blocks[0, :4].tolist() == [30, 31, 9, 30]
    for first_index, block_ids in ((3, [1]), (2, [1, 2]), (-1, [1])):
        with pytest.raises(InvalidSequence, match="has 3 blocks"):
            table.replace_blocks(0, first_index, block_ids)
    with pytest.raises(UnknownSlot):
        table.replace_blocks(1, 0, [1])


def test_a_prompt_needs_at_least_one_token() -> None:
    table = SlotTable(max_num_seqs=1, block_size=4)
    for token_ids, num_prompt in (((), 0), ((1,), 0), ((1,), 2)):
        with pytest.raises(InvalidSequence):
            table.add(SequenceStart(0, token_ids, num_prompt, SamplingParams(), ()))
    assert not table.is_live[0]
