"""What can be wrong with a model folder. Found at start, before any weight is loaded.

ModelFolderError
├── ModelFolderMissing         the path is not a folder
├── ModelFileMissing           a file that must be there is not, or cannot be read
├── InvalidModelJson           a file is not a JSON object
├── InvalidModelField          a field is missing, or has a value that cannot be
├── UnsupportedArchitecture    a family of models that the engine does not compute
├── UnsupportedModelOption     an option of a known family that the engine does not compute
├── LibraryMissing             the family is computed by a library that is not installed
├── InvalidWeightFile          a safetensors file is truncated or contradicts its own header
├── InvalidTokenizer           tokenizer.json is damaged
└── InvalidChatTemplate        the chat template is not valid Jinja
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class ModelFolderError(Exception):
    """Root of what can be wrong with a model folder. The message ends in what to do."""

    code: ClassVar[str] = "model_folder_invalid"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class ModelFolderMissing(ModelFolderError):
    """The path is not a folder."""

    code = "model_folder_missing"

    def __init__(self, path: Path, problem: str = "is not a folder") -> None:
        super().__init__(path, f"{problem}; give the folder that holds config.json")


class ModelFileMissing(ModelFolderError):
    """A file that every folder needs, or that another file names, is absent or unreadable."""

    code = "model_file_missing"

    def __init__(self, path: Path, hint: str) -> None:
        super().__init__(path, f"is missing or unreadable; {hint}")


class InvalidModelJson(ModelFolderError):
    """A file does not hold one JSON object in UTF-8."""

    code = "model_json_invalid"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, f"{problem}; copy the file again from where the model came from")


class InvalidModelField(ModelFolderError):
    """A field is missing, has the wrong type, or contradicts another one."""

    code = "model_field_invalid"

    def __init__(self, path: Path, field: str, problem: str) -> None:
        super().__init__(path, f"field {field}: {problem}; correct the file or save the model anew")
        self.field = field


class UnsupportedArchitecture(ModelFolderError):
    """The engine has no code for this family of models."""

    code = "model_architecture_unsupported"

    def __init__(self, path: Path, architecture: str, supported: Iterable[str]) -> None:
        super().__init__(
            path,
            f"architecture {architecture} is not supported; use a model of one of: "
            + ", ".join(sorted(supported))
            + ", or of another decoder that the transformers library computes",
        )
        self.architecture = architecture


class UnsupportedModelOption(ModelFolderError):
    """The model needs something the engine would otherwise silently compute wrongly."""

    code = "model_option_unsupported"

    def __init__(self, path: Path, option: str, hint: str) -> None:
        super().__init__(path, f"{option} is not supported; {hint}")
        self.option = option


class LibraryMissing(ModelFolderError):
    """A family that Tandem does not compute itself, and no transformers library."""

    code = "model_library_missing"

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            "its family is computed by the transformers library, which is not installed; "
            "pip install 'tandemserve[transformers]' on every worker",
        )


class InvalidWeightFile(ModelFolderError):
    """A safetensors file is shorter than its header says, or its header makes no sense."""

    code = "model_weights_invalid"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, f"{problem}; the copy is incomplete or damaged, fetch it again")


class InvalidTokenizer(ModelFolderError):
    """tokenizer.json cannot be loaded."""

    code = "tokenizer_invalid"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, f"{problem}; save the tokenizer anew with the tokenizers library")


class InvalidChatTemplate(ModelFolderError):
    """The chat template does not compile."""

    code = "chat_template_invalid"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, f"{problem}; correct the template or remove it")
