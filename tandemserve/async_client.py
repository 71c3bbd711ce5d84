"""The asyncio client. Thin: what happens is in generation.py, queries.py, async_connection.py."""

import random
from types import TracebackType
from typing import Self, Unpack

from tandemserve import queries
from tandemserve.admin_results import (
    CancelOutcome,
    ClusterStatus,
    Queues,
    RequestFilter,
    RequestHistory,
    RequestList,
    Reservations,
    WorkerView,
)
from tandemserve.async_connection import AsyncConnection, AsyncSleep
from tandemserve.async_stream import AsyncStream
from tandemserve.options import DEFAULT_TARGET, GenerateOptions, TLSConfig
from tandemserve.results import Completion, ModelInfo
from tandemserve.retry import RetryPolicy
from tandemserve.settings import Settings
from tandemserve.wire import Messages, Prompt

__all__ = ["AsyncAdmin", "AsyncClient"]


class AsyncClient:
    """A connection to a Tandem router.

    Serves the event loop of its first call, and is closed by `close()` or an `async with` block.
    Every call raises a TandemError when it fails, and TypeError for an argument of a wrong type.
    Calls are repeated after passing failures; generations go on where they broke off.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None = None,
        tls: TLSConfig | None = None,
        timeout_s: float | None = 600.0,
        query_timeout_s: float = 30.0,
        max_retries: int | None = None,
        retry_for_s: float = 10.0,
        resume_for_s: float | None = None,
        rng: random.Random | None = None,
        sleep: AsyncSleep | None = None,
    ) -> None:
        settings = Settings(
            target=target,
            token=token,
            tls=tls,
            timeout_s=timeout_s,
            query_timeout_s=query_timeout_s,
            retry=RetryPolicy(max_retries, retry_for_s, resume_for_s),
            rng=rng or random.Random(),
        )
        self._connection = AsyncConnection(settings, sleep)
        self.admin = AsyncAdmin(self._connection)

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Answer a text or a list of token ids; options are those of GenerateOptions."""
        async with self.stream(prompt, **options) as stream:
            return await stream.completion()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Like generate, but yields the answer while it is written."""
        generation = self._connection.settings.generation(prompt, options)
        return AsyncStream(self._connection, generation)

    async def chat(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Completion:
        """Answer a conversation; needs a model with a chat template."""
        async with self.stream_chat(messages, **options) as stream:
            return await stream.completion()

    def stream_chat(self, messages: Messages, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Like chat, but yields the answer while it is written."""
        generation = self._connection.settings.chat_generation(messages, options)
        return AsyncStream(self._connection, generation)

    async def list_models(self) -> tuple[str, ...]:
        """The names of the models served."""
        return await self._connection.query(queries.list_models())

    async def model_info(self, model: str = "") -> ModelInfo:
        """Sizes and limits of a model; no name means the only one."""
        return await self._connection.query(queries.model_info(model))

    async def tokenize(self, prompt: str | Messages, *, model: str = "") -> tuple[int, ...]:
        """The token ids of a text, or of a conversation under the model's chat template."""
        return await self._connection.query(queries.tokenize(prompt, model))

    async def close(self) -> None:
        """Cancel what runs and disconnect; closing twice is harmless."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncAdmin:
    """What operators ask; reached as `client.admin`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def status(self) -> ClusterStatus:
        """Counts and state of the whole cluster."""
        return await self._connection.query(queries.status())

    async def workers(self) -> tuple[WorkerView, ...]:
        """Every worker that the router knows."""
        return await self._connection.query(queries.workers())

    async def queues(self, *, max_tasks: int = 100) -> Queues:
        """The waiting prompt and generation tasks, in the order in which they would run."""
        return await self._connection.query(queries.queues(max_tasks))

    async def reservations(self, *, max_holdings: int = 1000) -> Reservations:
        """Which blocks are promised to whom."""
        return await self._connection.query(queries.reservations(max_holdings))

    async def requests(
        self, wanted: RequestFilter | None = None, *, max_requests: int = 50
    ) -> RequestList:
        """Requests of this router that run or ended recently."""
        return await self._connection.query(
            queries.requests(wanted or RequestFilter(), max_requests)
        )

    async def request(self, request_id: str) -> RequestHistory:
        """One request with everything that happened to it; the beginning of its id will do."""
        return await self._connection.query(queries.request(request_id))

    async def cancel(
        self, *request_ids: str, operator: str = "", reason: str = ""
    ) -> tuple[CancelOutcome, ...]:
        """End requests on both workers at once; their callers are told who did it and why.

        Raises: UnknownName, and then nothing was ended.
        """
        return await self._connection.query(queries.cancel(request_ids, operator, reason))

    async def cordon(self, worker_id: str, *, force: bool = False) -> WorkerView:
        """Let a worker take no new tasks, at any router; it keeps those that it has.

        Raises: LastWorker without `force` where nobody of its kind would be left.
        """
        return await self._connection.query(queries.set_admission(worker_id, "cordoned", force))

    async def uncordon(self, worker_id: str) -> WorkerView:
        """Let a worker take new tasks again."""
        return await self._connection.query(queries.set_admission(worker_id, "open", False))

    async def evacuate(self, worker_id: str, *, force: bool = False) -> WorkerView:
        """Like cordon; and all routers compute its tasks again on other workers."""
        return await self._connection.query(queries.set_admission(worker_id, "evacuating", force))
