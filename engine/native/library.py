"""The compiled kernels: built from C on first use, kept for later starts, loaded with ctypes.

There is no compiled code in the repository. A machine without a C compiler does without: see
`find_compiler` and engine/attention/choice.py.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("attention.c")
# No -ffast-math: the order of operations is the promise. Contraction to fused multiply-adds is
# fixed by the compiler's name and version, which are part of the digest.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-std=gnu11")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_TIMEOUT_S = 120.0
_CPUINFO = Path("/proc/cpuinfo")


class KernelsNotBuilt(RuntimeError):
    """The C compiler did not make a library from the kernels."""

    def __init__(self, compiler: str, reason: str) -> None:
        super().__init__(
            f"{compiler} did not build the attention kernels: {reason}; repair the compiler "
            "(GCC 12 or Clang 15 at least), or start every worker with --attention torch"
        )


@dataclass(frozen=True, slots=True)
class KernelLibrary:
    """The kernels in memory."""

    functions: ctypes.CDLL
    # Equal digests mean equal source, compiler, options and processor: equal bits.
    digest: str


def find_compiler() -> str | None:
    """The path of a C compiler; None where this machine has none."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def load_kernels(compiler: str, cache_folder: Path | None = None) -> KernelLibrary:
    """The kernels, compiled within about two seconds unless an earlier start has done it.

    Raises: KernelsNotBuilt.
    """
    digest = _digest(compiler)
    kept = cache_folder or Path.home() / ".cache" / "tandem" / "kernels"
    if _is_private(kept):
        return KernelLibrary(_library_in(kept, compiler, digest), digest)
    with tempfile.TemporaryDirectory(prefix="tandem-kernels-") as folder:
        return KernelLibrary(_library_in(Path(folder), compiler, digest), digest)


def _library_in(folder: Path, compiler: str, digest: str) -> ctypes.CDLL:
    library = folder / f"attention-{digest}.so"
    if not library.exists():
        _compile(compiler, library)
    return ctypes.CDLL(str(library))


def _is_private(wanted: Path) -> bool:
    """A folder, made if need be, that we can write and nobody else can put a library into."""
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = wanted.stat()
    except OSError:
        return False  # a home that is absent or cannot be written: normal in containers
    is_ours = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return is_ours and os.access(wanted, os.W_OK | os.X_OK)


def _compile(compiler: str, library: Path) -> None:
    # Under a name of its own first: several workers may start at once.
    handle, name = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(handle)
    try:
        _run(compiler, *_FLAGS, "-o", name, str(SOURCE))
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)


def _digest(compiler: str) -> str:
    """Of everything that the bits of a result depend on."""
    facts = (SOURCE.read_text(), _FLAGS, _run(compiler, "--version"), _processor())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What -march=native looks at, as far as the system tells."""
    if not _CPUINFO.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part")
    lines = _CPUINFO.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsNotBuilt(command[0], type(error).__name__) from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise KernelsNotBuilt(command[0], last[0])
    return done.stdout
