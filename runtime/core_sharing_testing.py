"""For tests: an engine of another process, since a place in the file belongs to a process."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType

_PROGRAM = """
import sys
from pathlib import Path
from runtime.core_sharing import CoreSharing
sharing = CoreSharing(Path(sys.argv[1]), int(sys.argv[2]))
for line in sys.stdin:
    name, now = line.split()
    print(getattr(sharing, name)(float(now)), flush=True)
"""


class EngineProcess:
    """Begins and ends steps when told to; killed, not ended, when it is left."""

    def __init__(self, path: Path, num_cores: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path), str(num_cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, now: float) -> int | None:
        """What `CoreSharing.begin` answers there."""
        answer = self._ask("begin", now)
        return None if answer == "None" else int(answer)

    def end(self, now: float) -> None:
        """Its step is over."""
        self._ask("end", now)

    def kill(self) -> None:
        """As in the middle of a step."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _ask(self, name: str, now: float) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{name} {now}\n")
        stdin.flush()
        return stdout.readline().strip()
