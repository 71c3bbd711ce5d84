"""For tests: a NIXL that moves nothing, fails where it is told to, and counts handles."""


class NixlRefused(Exception):
    """What the fake raises instead of an error of the library."""


class FakeNixl:
    """Stands for the library's module and for its agent; there is one agent only."""

    def __init__(self, failing_call: str = "") -> None:
        # The name of a method of the agent that raises.
        self.failing_call = failing_call
        self.handles: list[object] = []

    def nixl_agent_config(self, **settings: object) -> object:
        """As the library's."""
        return settings

    def nixl_agent(self, name: str, config: object) -> "FakeNixl":
        """As the library's."""
        return self

    def get_xfer_descs(self, spans: list[tuple[int, int, int]], memory: str) -> object:
        """As the library's."""
        self._may_fail("get_xfer_descs")
        return spans

    def initialize_xfer(self, kind: str, local: object, remote: object, peer: str) -> object:
        """As the library's: what it returns must be released."""
        self._may_fail("initialize_xfer")
        self.handles.append(object())
        return self.handles[-1]

    def transfer(self, handle: object) -> str:
        """As the library's."""
        self._may_fail("transfer")
        return "DONE"

    def release_xfer_handle(self, handle: object) -> None:
        """As the library's."""
        self.handles.remove(handle)

    def _may_fail(self, call: str) -> None:
        if call == self.failing_call:
            raise NixlRefused(call)
