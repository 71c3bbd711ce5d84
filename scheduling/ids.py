"""Identifiers that must not be mixed. All are plain strings or integers on the wire."""

from typing import NewType

# Chosen by the client or by the router; one per `Generate` call.
RequestId = NewType("RequestId", str)
# One try at one sequence of a request, unique over all routers and their lives:
# f"{request_id}/{index}~{try}". Both legs of a try share it.
TaskId = NewType("TaskId", str)
# Stable name of a worker, such as "decode-0"; survives a restart.
WorkerId = NewType("WorkerId", str)
# Stable name of a router replica.
RouterId = NewType("RouterId", str)
# One life of a process. Larger is newer for one name; work of an older one is refused.
Incarnation = NewType("Incarnation", int)
# Index of a KV block in one worker's pool.
BlockId = NewType("BlockId", int)
# How often a block was handed out; a writer or reader with an older tag is refused.
Generation = NewType("Generation", int)


def task_id_of(request_id: RequestId, index: int, attempt: str) -> TaskId:
    """The task that produces choice `index` of a request in this attempt."""
    return TaskId(f"{request_id}/{index}~{attempt}")
