"""One file of shared memory: made whole, locked by its owner, removed with its owner.

Kernel locks (open file description locks) say who lives: the owner of a file locks byte 0, the
sender in slot i byte 1 + i. The kernel drops them when the process is gone, and only after its
memory is, so a free lock proves that nothing of that process writes any more. They cross
container borders where the file does, which process ids do not.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from kvtransfer.errors import ExportUnavailable

PREFIX = "tandem-kv."
OWNER_LOCK = 0
# struct flock of 64-bit Linux: type, whence, start, length, process id.
_FLOCK = struct.Struct("hhqqi4x")
_NAME_MAX = 255
# Small enough for a signal not to undo a long allocation, and for madvise, which holds the
# interpreter lock, not to be felt by the engine thread.
_ALLOCATE_STEP = 256 << 20
_POPULATE_STEP = 16 << 20
# Linux 5.14; not in the mmap module.
_MADV_POPULATE_WRITE = 23


def segment_name(cluster: str, worker_id: str, incarnation: int) -> str:
    """The file name of one life of a worker; any names give a valid one."""
    name = f"{_stem(cluster, worker_id)}.{incarnation}"
    if len(name) > _NAME_MAX:
        raise ExportUnavailable(f"worker id {worker_id[:40]!r}... is too long", "use a shorter one")
    return name


def lives_of(directory: Path, cluster: str, worker_id: str) -> list[int]:
    """Incarnations of a worker whose segment still has a living owner."""
    stem = _stem(cluster, worker_id)
    lives = []
    for path in directory.glob(f"{PREFIX}*"):
        found, _, incarnation = path.name.rpartition(".")
        if found == stem and incarnation.isdecimal() and is_owned(path):
            lives.append(int(incarnation))
    return lives


def _stem(cluster: str, worker_id: str) -> str:
    # The colon separates: quoting leaves none in the names.
    return f"{PREFIX}{quote(cluster, safe='')}:{quote(worker_id, safe='')}"


def is_owned(path: Path) -> bool:
    """True when the segment's owner lives."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return is_locked(file, OWNER_LOCK)
    finally:
        os.close(file)


def try_lock(file: int, byte: int) -> bool:
    """Take a lock for this open file; False when another open file holds it."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(file: int, byte: int) -> None:
    """Let a lock go. Closing is not enough: a mapping keeps a duplicate of its file open."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def is_locked(file: int, byte: int) -> bool:
    """True when another open file holds the lock."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer: bytes = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def remove_leftovers(directory: Path) -> list[str]:
    """Delete the segments whose owner is dead; returns their names."""
    removed = []
    for path in sorted(directory.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):  # another user's, or removed meanwhile
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # A name appears only with its lock held, so a free lock means a dead owner.
                if try_lock(file, OWNER_LOCK):
                    path.unlink()
                    removed.append(path.name)
            finally:
                os.close(file)
    return removed


@contextlib.contextmanager
def new_segment(path: Path, num_bytes: int) -> Iterator[int]:
    """A file without a name, allocated and locked; named `path` when the body ends well.

    Every page is allocated now: a sparse file would kill the process (SIGBUS) at the write that
    no longer fits. The open file is the caller's afterwards.
    Raises: ExportUnavailable.
    """
    require_room(path.parent, num_bytes)
    try:
        file = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ExportUnavailable(
            f"no file can be made in {path.parent}: {error.strerror}",
            "mount a tmpfs there that this user may write",
        ) from error
    try:
        try_lock(file, OWNER_LOCK)
        _allocate(file, path.parent, num_bytes)
        yield file
        _give_name(file, path)
    except BaseException:
        os.close(file)
        raise


def populate(memory: mmap.mmap) -> None:
    """Map every page now: a first touch during a push costs several times the copy."""
    for start in range(0, len(memory), _POPULATE_STEP):
        try:
            memory.madvise(_MADV_POPULATE_WRITE, start, min(_POPULATE_STEP, len(memory) - start))
        except OSError:
            return  # an older kernel: pages are mapped as they are touched


def require_room(directory: Path, num_bytes: int) -> None:
    """Whether that many bytes are free at this moment. Raises: ExportUnavailable."""
    try:
        about = os.statvfs(directory)
    except OSError as error:
        raise ExportUnavailable(
            f"{directory} cannot be read: {error.strerror}", "mount a tmpfs there"
        ) from error
    free = about.f_bavail * about.f_frsize
    if free < num_bytes:
        raise _too_small(directory, num_bytes, free, about.f_blocks * about.f_frsize)


def _allocate(file: int, directory: Path, num_bytes: int) -> None:
    for start in range(0, num_bytes, _ALLOCATE_STEP):
        try:
            os.posix_fallocate(file, start, min(_ALLOCATE_STEP, num_bytes - start))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise ExportUnavailable(
                    f"{num_bytes} bytes of {directory} cannot be allocated: {error.strerror}",
                    "lower the number of KV blocks",
                ) from error
            about = os.statvfs(directory)
            size = about.f_blocks * about.f_frsize
            raise _too_small(directory, num_bytes, start, size) from error


def _too_small(directory: Path, num_bytes: int, free: int, size: int) -> ExportUnavailable:
    mib = 1 << 20
    return ExportUnavailable(
        f"{directory} is {size / mib:.0f} MiB large with {free / mib:.0f} MiB free, the KV pool "
        f"needs {num_bytes / mib:.0f} MiB",
        "lower the number of KV blocks or enlarge it (docker: --shm-size; Kubernetes: an emptyDir "
        "with medium Memory; host: mount -o remount,size=...)",
    )


def _give_name(file: int, path: Path) -> None:
    # os.link follows the /proc link to the nameless file only when it is given a folder.
    own_files = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(file), path, src_dir_fd=own_files)
    except FileExistsError as error:
        raise ExportUnavailable(
            f"{path.name} is exported already by a living process",
            "give every worker its own id and every start a new incarnation",
        ) from error
    finally:
        os.close(own_files)
