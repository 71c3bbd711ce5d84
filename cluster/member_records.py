"""Members as text in the store: JSON with a version-tolerant reader."""

import json
from dataclasses import asdict
from typing import Any

from cluster.membership import MemberRecord, RouterRecord, WorkerRecord
from cluster.process_identity import ProcessIdentity

_KINDS: dict[str, type[WorkerRecord] | type[RouterRecord]] = {
    "worker": WorkerRecord,
    "router": RouterRecord,
}


def member_text(record: MemberRecord) -> str:
    """The record as one line."""
    kind = "worker" if isinstance(record, WorkerRecord) else "router"
    return json.dumps({"kind": kind, **asdict(record)}, separators=(",", ":"))


def parse_member(text: str) -> MemberRecord | None:
    """The record, or None when a process of another version wrote it and fields are missing."""
    try:
        fields: dict[str, Any] = json.loads(text)
        record = _KINDS[fields.pop("kind")]
        fields["process"] = ProcessIdentity(**fields["process"])
        known = {name: fields[name] for name in record.__dataclass_fields__}
        return record(**known)
    except (KeyError, TypeError, ValueError):
        return None
