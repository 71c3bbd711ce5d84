"""The compiled kernels: built from C on first use, kept for later starts, loaded with ctypes.

There is no compiled code in the repository. A machine without a C compiler does without: see
`choose_kernels` in engine/native/choice.py.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
# Headers as well: the digest covers them.
_TEXTS = tuple(sorted(_FOLDER.glob("*.[ch]")))
# No -ffast-math: the order of operations is the promise. Contraction to fused multiply-adds is
# fixed by the compiler's name and version, which are part of the digest.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-std=gnu11")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_TIMEOUT_S = 120.0
_NO_FILE = ("-x", "c", os.devnull)


class KernelsNotBuilt(RuntimeError):
    """The C compiler did not make a library from the kernels."""

    def __init__(self, compiler: str, reason: str) -> None:
        super().__init__(
            f"{compiler} did not build the compiled kernels: {reason}; repair the compiler "
            "(GCC 12 or Clang 15 at least), or start every worker with --attention torch"
        )


class KernelsNotLoaded(RuntimeError):
    """The system does not let this process keep or load a library that it has built."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the compiled kernels cannot be loaded: {reason}; make the home or the temporary "
            "folder writable and executable (no noexec), or start every worker with "
            "--attention torch"
        )


@dataclass(frozen=True, slots=True)
class KernelLibrary:
    """The kernels in memory."""

    functions: ctypes.CDLL
    # Equal digests mean equal source, compiler, options and target: equal bits.
    digest: str
    # Whether this machine has the matrix unit that engine/native/products.py needs.
    can_multiply: bool


def find_compiler() -> str | None:
    """The path of a C compiler; None where this machine has none."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def load_kernels(compiler: str, cache_folder: Path | None = None) -> KernelLibrary:
    """The kernels, compiled within a few seconds unless an earlier start has done it.

    Raises: KernelsNotBuilt, KernelsNotLoaded.
    """
    digest = _digest(compiler)
    kept = cache_folder or _folder_at_home()
    if kept is not None and _is_private(kept):
        try:
            return _library_in(kept, compiler, digest)
        except (OSError, KernelsNotBuilt):
            # Mounted noexec, a damaged file, or full, of which the compiler says only that it
            # failed: a folder of our own may do.
            pass
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-kernels-") as folder:
            return _library_in(Path(folder), compiler, digest)
    except OSError as error:
        raise KernelsNotLoaded(str(error)) from error


def _library_in(folder: Path, compiler: str, digest: str) -> KernelLibrary:
    """Raises: OSError, KernelsNotBuilt."""
    library = folder / f"kernels-{digest}.so"
    if not library.exists():
        _compile(compiler, library)
    functions = ctypes.CDLL(str(library))
    # The threads that torch computes with; absent where torch was built without OpenMP.
    functions.tandem_use_threads(getattr(ctypes.CDLL(None), "GOMP_parallel", None))
    functions.tandem_can_multiply.restype = ctypes.c_int64
    return KernelLibrary(functions, digest, bool(functions.tandem_can_multiply()))


def _folder_at_home() -> Path | None:
    try:
        return Path.home() / ".cache" / "tandem" / "kernels"
    except RuntimeError:
        return None  # a user without a home: normal in containers


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
    try:
        sources = (str(path) for path in _TEXTS if path.suffix == ".c")
        _run(compiler, *_FLAGS, "-o", name, *sources, "-lm")
        _make_durable(Path(name))
        os.replace(name, library)
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _make_durable(file: Path) -> None:
    """A crash after the rename must not leave a library that is named but not written."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(compiler: str) -> str:
    """Of everything that the bits of a result depend on."""
    texts = tuple(path.read_text() for path in _TEXTS)
    facts = (texts, _FLAGS, _run(compiler, "--version"), _target(compiler))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _target(compiler: str) -> str:
    """What -march=native means here: the instructions and the tuning that it stands for.

    Not what the system says of the processor: a flag that the compiler does not know changes no
    bit, and another kernel of the system may show other flags.
    """
    macros = _run(compiler, "-march=native", "-dM", "-E", *_NO_FILE)
    try:
        # GCC only. On some processors the macros leave out what is tuned for.
        options = _run(compiler, "-march=native", "-Q", "--help=target")
    except KernelsNotBuilt:
        options = ""
    return macros + options


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
