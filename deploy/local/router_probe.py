"""The launcher's own view of the router, through the same Admin service that operators use."""

import asyncio

from runtime.config import RouterConfig
from tandemserve import AsyncClient, ConnectionFailed, TandemError, TLSConfig, WorkerView

_ANSWER_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0


class RouterProbe:
    """Asks a router that may not be up yet, or not any more."""

    def __init__(self, endpoint: str, config: RouterConfig) -> None:
        self._endpoint = endpoint
        self._config = config
        self._client: AsyncClient | None = None
        # Why the last question got no answer; empty after an answer.
        self.problem = "nothing listens yet"

    def new_client(self) -> AsyncClient:
        """A client that passes the router's own checks; the caller closes it."""
        return self._client_with(max_retries=2, query_timeout_s=30.0)

    async def workers(self) -> tuple[WorkerView, ...] | None:
        """All workers that the router knows; None while it does not answer."""
        if self._client is None:
            # gRPC would wait between attempts for longer than a start should take.
            if not await self._listens():
                self.problem = "nothing listens yet"
                return None
            self._client = self._client_with(max_retries=0, query_timeout_s=_ANSWER_TIMEOUT_S)
        try:
            workers = await self._client.admin.workers()
        except TandemError as error:
            self.problem = error.message
            if isinstance(error, ConnectionFailed):
                await self.close()
            return None
        self.problem = ""
        return workers

    async def close(self) -> None:
        """Disconnect; the next question connects again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _listens(self) -> bool:
        host, _, port = self._endpoint.rpartition(":")
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:  # TimeoutError is one
            return False
        writer.close()
        return True

    def _client_with(self, *, max_retries: int, query_timeout_s: float) -> AsyncClient:
        token = self._config.auth_token
        cert = self._config.tls_cert
        return AsyncClient(
            self._endpoint,
            token=None if token is None else token.get_secret_value(),
            # The server's own certificate is the only authority that is known here.
            tls=None if cert is None else TLSConfig(ca=cert),
            query_timeout_s=query_timeout_s,
            max_retries=max_retries,
        )
