"""What is held of the library while a write is under way, and after one that failed."""

import pytest

from kvtransfer.nixl_agent import NixlAgent, NixlFailed
from kvtransfer.nixl_testing import FakeNixl

SPAN = [(0x1000, 64)]


@pytest.mark.parametrize("failing_call", ["get_xfer_descs", "initialize_xfer", "transfer"])
def test_a_write_that_does_not_begin_leaves_no_handle(failing_call: str) -> None:
    library = FakeNixl(failing_call)
    agent = NixlAgent("prefill-0#1", library)
    for _ in range(3):
        with pytest.raises(NixlFailed, match="a write"):
            agent.begin_write(SPAN, SPAN)
    assert library.handles == []


def test_a_write_holds_its_handle_until_it_is_released() -> None:
    library = FakeNixl()
    write = NixlAgent("prefill-0#1", library).begin_write(SPAN, SPAN)
    assert write.is_done()
    assert len(library.handles) == 1
    write.release()
    write.release()
    assert library.handles == []
