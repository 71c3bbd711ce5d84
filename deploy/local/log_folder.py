"""The folder that a user names for the logs: it must take files before anything is started."""

import tempfile
from pathlib import Path

from deploy.local.errors import LogFolderUnusable


def make_log_folder(folder: Path) -> None:
    """Make it, unless it is there, and see that files can be made in it.

    Raises: LogFolderUnusable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder may be there and take no files: one of the kernel's, or one of somebody else.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise LogFolderUnusable(folder, "is a file, or lies below one") from None
    except OSError as error:
        raise LogFolderUnusable(folder, f"takes no files ({error.strerror})") from error
