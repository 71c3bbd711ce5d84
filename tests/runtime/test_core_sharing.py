import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core_sharing import LINGER_S, MAX_STEP_S, CoreSharing, share_of_cores


@given(
    num_cores=st.integers(1, 64),
    others=st.lists(st.floats(0, 10), max_size=8),
    now=st.floats(0, 10),
)
def test_busy_engines_never_get_more_cores_than_there_are(
    num_cores: int, others: list[float], now: float
) -> None:
    busy = 1 + sum(instant > now for instant in others)
    share = share_of_cores(num_cores, others, now)
    assert share >= 1
    assert share * busy <= max(num_cores, busy)
    assert share == num_cores or busy > 1


def test_an_engine_alone_takes_all_cores_and_two_divide_them(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 4) as prefill, CoreSharing_of_another_process(path) as decode:
        assert prefill.begin(100.0) == 4
        prefill.end(100.1)
        decode("begin", 200.0)
        assert prefill.begin(200.0) == 2
        prefill.end(200.1)


def test_an_engine_counts_as_busy_until_shortly_after_its_step(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 2) as prefill, CoreSharing_of_another_process(path) as decode:
        decode("begin", 50.0)
        decode("end", 51.0)
        assert prefill.begin(51.0 + LINGER_S / 2) == 1
        assert prefill.begin(51.0 + LINGER_S * 2) == 2


def test_an_engine_that_died_in_a_step_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 2) as prefill:
        with CoreSharing_of_another_process(path) as decode:
            decode("begin", 10.0)
        assert prefill.begin(10.0 + MAX_STEP_S / 2) == 1
        assert prefill.begin(10.0 + MAX_STEP_S * 2) == 2
        # Its place is free again.
        with CoreSharing_of_another_process(path) as decode:
            decode("begin", 20.0)
            assert prefill.begin(20.0) == 1


class CoreSharing_of_another_process:  # noqa: N801 -- reads as what it is
    """Locks belong to processes, so the second engine has to be one."""

    _PROGRAM = (
        "import sys; from pathlib import Path; from runtime.core_sharing import CoreSharing\n"
        "sharing = CoreSharing(Path(sys.argv[1]), 2)\n"
        "for line in sys.stdin:\n"
        "    name, now = line.split()\n"
        "    getattr(sharing, name)(float(now))\n"
        "    print('done', flush=True)\n"
    )

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "CoreSharing_of_another_process":
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM, str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __call__(self, name: str, now: float) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{name} {now}\n")
        stdin.flush()
        assert stdout.readline() == "done\n"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        CoreSharing(tmp_path / "absent" / "cores", 2)
