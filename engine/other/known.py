"""Whether the transformers library here has a decoder of this name, without importing it.

Importing takes seconds, so the library's own list is read as text: of those who ask, some only want
to know whether to begin.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from engine.model_folder import ModelFolder
from engine.model_folder_errors import LibraryMissing, UnsupportedModelOption

_LIST_FILE = "models/auto/modeling_auto.py"
_LIST_NAME = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def require_known(folder: ModelFolder, library: Path | None = None) -> None:
    """`library`: the folder of its package; None: where it is installed.

    What its list does not tell passes. Raises: LibraryMissing, UnsupportedModelOption.
    """
    if library is None:
        spec = find_spec("transformers")
        if spec is None or spec.origin is None:
            raise LibraryMissing(folder.path)
        library = Path(spec.origin).parent
    names = _names(library / _LIST_FILE)
    name = folder.config.architecture
    if names and name not in names:
        raise UnsupportedModelOption(
            folder.path,
            f"architecture {name}, which the transformers library here does not have,",
            "use a model of another family, or another version of the library",
        )


def _names(file: Path) -> frozenset[str]:
    """Of the classes in the list; none where it is not to be found."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    _, _, behind = text.partition(f"\n{_LIST_NAME} =")
    own, _, _ = behind.partition("\n)\n")
    return frozenset(re.findall(r'"(\w+)"\)', own))
