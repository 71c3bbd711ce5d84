"""The standard health service: "" is liveness, the full name of a service its readiness.

Our own servicer, because the one of grpcio-health-checking forgets the other watchers of a
service when one of them leaves, and lets a slow watcher hold up every change.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVENESS = ""
_Status = health_pb2.HealthCheckResponse


class HealthBoard:
    """What a process says about itself. Used from the event loop only."""

    def __init__(self, service_names: Sequence[str]) -> None:
        # A live process is SERVING as a whole from its first answer on.
        self._ready_by_service = {LIVENESS: True} | dict.fromkeys(service_names, False)
        # Wakes the watchers; replaced at each change, so none can miss one.
        self._changed = asyncio.Event()
        self._closed = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer the health calls of a server that has not been started."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def set_ready(self, service: str, ready: bool) -> None:
        """Say whether a service takes work; no effect once closed.

        Raises: KeyError for a service that was not named at the start.
        """
        if self._ready_by_service[service] != ready and not self._closed:
            self._ready_by_service[service] = ready
            self._wake()

    def is_ready(self, service: str) -> bool:
        """What was last said of a service. Raises: KeyError for an unknown one."""
        return self._ready_by_service[service]

    def close(self) -> None:
        """Take everything but liveness out of service for good, and let watchers go."""
        for service in self._ready_by_service:
            if service != LIVENESS:
                self._ready_by_service[service] = False
        self._closed = True
        self._wake()

    async def Check(  # noqa: N802 - the name is given by the protocol
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """The state of one service now; NOT_FOUND for an unknown one."""
        if request.service not in self._ready_by_service:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Status(status=self._status(request.service))

    async def Watch(  # noqa: N802 - the name is given by the protocol
        self, request: Any, _: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """The state now and after each change, until the server stops."""
        last = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != last:
                last = status
                yield _Status(status=status)
            if self._closed:
                return
            await changed.wait()

    def _status(self, service: str) -> Any:
        ready = self._ready_by_service.get(service)
        if ready is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if ready else _Status.NOT_SERVING

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
