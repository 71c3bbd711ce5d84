"""The synchronous client. Thin: what happens is in generation.py, queries.py and connection.py."""

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
from tandemserve.connection import Connection, Sleep
from tandemserve.options import DEFAULT_TARGET, GenerateOptions, TLSConfig
from tandemserve.results import Completion, ModelInfo
from tandemserve.retry import RetryPolicy
from tandemserve.settings import Settings
from tandemserve.stream import Stream
from tandemserve.wire import Messages, Prompt

__all__ = ["Admin", "Client"]


class Client:
    """A connection to a Tandem router.

    Thread-safe, connects with the first call, and is closed by `close()` or a `with` block. Every
    call raises a TandemError when it fails, and TypeError for an argument of a wrong type. Calls
    are repeated after passing failures; generations go on where they broke off.
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
        sleep: Sleep | None = None,
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
        self._connection = Connection(settings, sleep)
        self.admin = Admin(self._connection)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Answer a text or a list of token ids; options are those of GenerateOptions."""
        with self.stream(prompt, **options) as stream:
            return stream.completion()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """Like generate, but yields the answer while it is written."""
        generation = self._connection.settings.generation(prompt, options)
        return Stream(self._connection, generation)

    def chat(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Completion:
        """Answer a conversation; needs a model with a chat template."""
        with self.stream_chat(messages, **options) as stream:
            return stream.completion()

    def stream_chat(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Stream:
        """Like chat, but yields the answer while it is written."""
        generation = self._connection.settings.chat_generation(messages, options)
        return Stream(self._connection, generation)

    def list_models(self) -> tuple[str, ...]:
        """The names of the models served."""
        return self._connection.query(queries.list_models())

    def model_info(self, model: str = "") -> ModelInfo:
        """Sizes and limits of a model; no name means the only one."""
        return self._connection.query(queries.model_info(model))

    def tokenize(self, prompt: str | Messages, *, model: str = "") -> tuple[int, ...]:
        """The token ids of a text, or of a conversation under the model's chat template."""
        return self._connection.query(queries.tokenize(prompt, model))

    def close(self) -> None:
        """Cancel what runs and disconnect; closing twice is harmless."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Admin:
    """What operators ask; reached as `client.admin`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def status(self) -> ClusterStatus:
        """Counts and state of the whole cluster."""
        return self._connection.query(queries.status())

    def workers(self) -> tuple[WorkerView, ...]:
        """Every worker that the router knows."""
        return self._connection.query(queries.workers())

    def queues(self, *, max_tasks: int = 100) -> Queues:
        """The waiting prompt and generation tasks, in the order in which they would run."""
        return self._connection.query(queries.queues(max_tasks))

    def reservations(self, *, max_holdings: int = 1000) -> Reservations:
        """Which blocks are promised to whom."""
        return self._connection.query(queries.reservations(max_holdings))

    def requests(
        self, wanted: RequestFilter | None = None, *, max_requests: int = 50
    ) -> RequestList:
        """Requests of this router that run or ended recently."""
        return self._connection.query(queries.requests(wanted or RequestFilter(), max_requests))

    def request(self, request_id: str) -> RequestHistory:
        """One request with everything that happened to it; the beginning of its id will do."""
        return self._connection.query(queries.request(request_id))

    def cancel(
        self, *request_ids: str, operator: str = "", reason: str = ""
    ) -> tuple[CancelOutcome, ...]:
        """End requests on both workers at once; their callers are told who did it and why.

        Raises: UnknownName, and then nothing was ended.
        """
        return self._connection.query(queries.cancel(request_ids, operator, reason))

    def cordon(self, worker_id: str, *, force: bool = False) -> WorkerView:
        """Let a worker take no new tasks, at any router; it keeps those that it has.

        Raises: LastWorker without `force` where nobody of its kind would be left.
        """
        return self._connection.query(queries.set_admission(worker_id, "cordoned", force))

    def uncordon(self, worker_id: str) -> WorkerView:
        """Let a worker take new tasks again."""
        return self._connection.query(queries.set_admission(worker_id, "open", False))

    def evacuate(self, worker_id: str, *, force: bool = False) -> WorkerView:
        """Like cordon; and all routers compute its tasks again on other workers."""
        return self._connection.query(queries.set_admission(worker_id, "evacuating", force))
