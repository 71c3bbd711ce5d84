"""JSON files of a model folder, and what is wrong with them, by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.model_folder_errors import (
    InvalidModelField,
    InvalidModelJson,
    ModelFileMissing,
    ModelFolderMissing,
)

_COPY_HINT = "copy it from where the model came from"


def read_file(path: Path, hint: str = _COPY_HINT) -> bytes:
    """The content of a file that the folder must have; the hint says what to do where it lacks it.

    Raises: ModelFolderMissing, ModelFileMissing.
    """
    if not path.parent.is_dir():
        raise ModelFolderMissing(path.parent)
    try:
        return path.read_bytes()
    except OSError:
        raise ModelFileMissing(path, hint) from None


def read_json_object(path: Path, hint: str = _COPY_HINT) -> dict[str, Any]:
    """The JSON object in a file of the folder.

    Raises: ModelFolderMissing, ModelFileMissing, InvalidModelJson.
    """
    content = read_file(path, hint)
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidModelJson(path, f"is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InvalidModelJson(path, "does not hold a JSON object")
    return fields


class JsonSchema(BaseModel):
    """The fields that are read of a file; others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


SchemaT = TypeVar("SchemaT", bound=JsonSchema)


def parse(
    schema: type[SchemaT], path: Path, fields: Mapping[str, Any], inside: str = ""
) -> SchemaT:
    """The checked fields of a file; `inside` is the field that holds them, where one does.

    Raises: InvalidModelField.
    """
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in (inside, *first["loc"]) if part != "")
        raise InvalidModelField(path, field, first["msg"].lower()) from None
