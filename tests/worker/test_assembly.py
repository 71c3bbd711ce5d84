import pytest

from engine.attention.choice import AttentionUnavailable
from engine.native.library import KernelsNotBuilt, KernelsNotLoaded
from engine.row_tiles import NoCommonRowCount
from runtime.errors import StartupError
from worker.assembly import engine_errors_in_one_line


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (NoCommonRowCount(), "another build of torch"),
        (KernelsNotBuilt("cc", "no memory"), "--attention torch"),
        (KernelsNotLoaded("noexec"), "--attention torch"),
        (AttentionUnavailable("native", "no compiler", "install gcc"), "install gcc"),
    ],
)
def test_a_machine_that_cannot_compute_ends_the_start_with_one_line_and_a_remedy(
    error: Exception, remedy: str
) -> None:
    with pytest.raises(StartupError, match=remedy) as caught, engine_errors_in_one_line():
        raise error
    assert "\n" not in str(caught.value)
