"""The little of NIXL that is used here, behind types of our own; imported only when asked for.

The package is `nixl-cu13`; the meta package `nixl` would bring two sets of CUDA libraries.
"""

import contextlib
import importlib
import uuid
from collections.abc import Sequence
from typing import Any, Final

from kvtransfer.errors import ExportUnavailable

_MODULE: Final = "nixl_cu13._api"
# UCX moves host memory over whatever there is: shared memory, TCP, InfiniBand.
_BACKEND: Final = "UCX"
_HOST_MEMORY: Final = "DRAM"


class NixlFailed(Exception):
    """A call into NIXL failed."""

    def __init__(self, what: str, cause: object) -> None:
        super().__init__(f"NIXL cannot {what}: {cause}; look at its own log lines")


def require_nixl() -> Any:
    """The module. Raises: ExportUnavailable where it is not installed or does not load."""
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        raise ExportUnavailable(
            f"NIXL cannot be used ({error})",
            "install the extra: pip install 'tandemserve[nixl]', or take nixl out of transports",
        ) from error


class NixlAgent:
    """One agent, used by one thread. It makes progress only while it is called.

    Closing it deregisters its memory: what peers have not written yet is never written.
    """

    def __init__(self, owner: str, api: Any = None) -> None:
        api = api or require_nixl()
        # No thread of its own: one that polls for ever would take a core from the engine.
        config = api.nixl_agent_config(enable_prog_thread=False, backends=[_BACKEND])
        try:
            self._agent = api.nixl_agent(f"{owner}/{uuid.uuid4().hex[:12]}", config)
        except Exception as error:
            raise ExportUnavailable(
                f"NIXL makes no agent ({error})", "check its UCX backend and UCX_* settings"
            ) from error
        self._registered: dict[tuple[int, int], Any] = {}
        self._peer = ""

    def register(self, address: int, num_bytes: int) -> None:
        """Let NIXL read or write this memory, which must stay; twice is harmless."""
        if (address, num_bytes) in self._registered:
            return
        try:
            descriptors = self._agent.get_reg_descs([(address, num_bytes, 0, "")], _HOST_MEMORY)
            self._registered[address, num_bytes] = self._agent.register_memory(descriptors)
        except Exception as error:
            raise NixlFailed(f"register {num_bytes} bytes", error) from error

    def metadata(self) -> bytes:
        """What a peer needs to write here."""
        return bytes(self._agent.get_agent_metadata())

    def add_peer(self, metadata: bytes) -> None:
        """Whom `begin_write` writes to."""
        try:
            self._peer = self._agent.add_remote_agent(metadata)
        except Exception as error:
            raise NixlFailed("read the peer's metadata", error) from error

    def progress(self) -> None:
        """Let peers go on that write here: some transports copy within this call."""
        self._agent.get_new_notifs()

    def begin_write(
        self, local: Sequence[tuple[int, int]], remote: Sequence[tuple[int, int]]
    ) -> "NixlWrite":
        """Spans (address, bytes) of registered memory to spans of the peer's, pair by pair."""
        agent = self._agent
        try:
            handle = agent.initialize_xfer(
                "WRITE",
                agent.get_xfer_descs([(at, size, 0) for at, size in local], _HOST_MEMORY),
                agent.get_xfer_descs([(at, size, 0) for at, size in remote], _HOST_MEMORY),
                self._peer,
            )
        except Exception as error:
            raise NixlFailed("prepare a write", error) from error
        try:
            return NixlWrite(agent, handle, agent.transfer(handle))
        except Exception as error:
            # Nobody else knows of it: it would last as long as the agent.
            _release(agent, handle)
            raise NixlFailed("begin a write", error) from error

    def close(self) -> None:
        """Deregister, disconnect, and let go. Twice is fine."""
        agent, self._agent = self._agent, None
        if agent is None:
            return
        for descriptors in self._registered.values():
            # Refused where a write is under way; the end of the agent ends that as well.
            with contextlib.suppress(Exception):
                agent.deregister_memory(descriptors)
        self._registered.clear()
        # The library's destructor does the rest, so no reference may be left.
        del agent


class NixlWrite:
    """A write under way."""

    def __init__(self, agent: Any, handle: Any, state: str) -> None:
        self._agent = agent
        self._handle = handle
        self._state = state

    def is_done(self) -> bool:
        """True once every byte lies in the peer's memory. Raises: NixlFailed."""
        if self._state == "PROC":
            try:
                self._state = self._agent.check_xfer_state(self._handle)
            except Exception as error:
                raise NixlFailed("finish a write", error) from error
        if self._state == "ERR":
            raise NixlFailed("finish a write", "the transfer failed")
        return bool(self._state == "DONE")

    def release(self) -> None:
        """Let go of it; one that is not done is given up."""
        agent, handle, self._agent, self._handle = self._agent, self._handle, None, None
        if agent is not None:
            _release(agent, handle)


def _release(agent: Any, handle: Any) -> None:
    # Refused while it moves: it ends with its agent, which the owner closes then.
    with contextlib.suppress(Exception):
        agent.release_xfer_handle(handle)
