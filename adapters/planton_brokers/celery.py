"""Celery: a queue of its tasks to relay to, and the base of the task that does the work."""

import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from queue import SimpleQueue
from typing import Any, TypeAlias

import celery
import trio

from planton import InstructionEvent
from planton.storage import Storage, to_name
from planton_brokers._consumer import taken_over
from planton_brokers._port import Message, Sender, without_password
from planton_executor import Executor, Work

Outcome: TypeAlias = tuple[Any, BaseException | None]

# Seconds to connect, and until a message is confirmed.
_TIMEOUT = 5
# A connection to a broker that hangs is left to itself after so many.
_CLOSED_WITHIN = 2.0
# A worker waits for its task, however long that takes.
_GRACE = 365 * 86400.0


class CeleryQueue:
    """Sends each instruction as a task of a Celery app, whose workers are the consumers.

    With RabbitMQ as the app's broker, publisher confirms are turned on; with Redis the message is
    in its memory when it has answered.

    Args:
        app: The app.
        task: Name of the task, whose base is `InstructionTask`.
        queue: Name of the queue; what the app's routes say if None.

    Raises:
        InvalidArgumentError: If a name cannot be used.
    """

    workers = "Celery's workers consume: give a task base=InstructionTask, and run them"

    def __init__(self, app: celery.Celery, *, task: str, queue: str | None = None) -> None:
        self._app, self._task = app, to_name(task)
        self._queue = None if queue is None else to_name(queue)

    def __str__(self) -> str:
        return f"Celery task {self._task!r} at {without_password(str(self._app.conf.broker_url))}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Sender]:
        """Connect to the broker of the app."""
        connection = await trio.to_thread.run_sync(self._open)
        try:
            yield _Connection(self._send, connection)
        finally:
            with trio.move_on_after(_CLOSED_WITHIN, shield=True):
                await trio.to_thread.run_sync(connection.release, abandon_on_cancel=True)

    def _open(self) -> Any:
        connection = self._app.connection_for_write(transport_options={"confirm_publish": True})
        connection.ensure_connection(max_retries=1, timeout=_TIMEOUT)
        return connection

    def _send(self, connection: Any, messages: Sequence[Message]) -> list[Exception | None]:
        producer = self._app.amqp.Producer(connection)
        for message in messages:
            self._app.send_task(
                self._task,
                args=[message.body],
                task_id=message.id,
                queue=self._queue,
                producer=producer,
                retry=False,
                ignore_result=True,
                confirm_timeout=_TIMEOUT,
            )
        return [None] * len(messages)


class _Connection:
    def __init__(self, send: Callable[..., list[Exception | None]], connection: Any) -> None:
        self._send, self._connection = send, connection
        self._limiter = trio.CapacityLimiter(1)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return await trio.to_thread.run_sync(
            self._send, self._connection, messages, limiter=self._limiter
        )


class InstructionTask(celery.Task):  # type: ignore  # untyped, or generic in its stubs
    """The base of a Celery task that executes instructions and reports how they end.

        @app.task(base=InstructionTask, name="send_email", open_storage=open_storage)
        def send_email(work: Work): ...

    The claim is taken over before the function is called, and renewed while it runs. What the
    function returns or raises is reported; Celery does not see it fail, nor try it again. If the
    claim is another's by then, the function is not called.

    Attributes:
        open_storage: Makes the storage, such as `lambda: PostgresStorage(url)`; it is opened once
            in each process of a worker, by its first message.
        lease: Seconds without a heartbeat after which the work is given to another.
        retry_limit: How often an instruction is tried again that brought no retries.
        retry_delay: Seconds until then, or a function as an executor's handler may have it.
    """

    abstract = True
    open_storage: Callable[[], Storage]
    lease = 60.0
    retry_limit = 0
    retry_delay: Any = 0.0

    def __call__(self, text: str) -> Any:
        """Execute the instruction of a message; the function runs in this thread."""
        event = InstructionEvent.from_json(text)
        offers: SimpleQueue[Work | None] = SimpleQueue()
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        reports: SimpleQueue[BaseException | None] = SimpleQueue()
        reporter = _reporter_of(type(self))
        reporter.start(self._report, reporter.storage, event, offers, outcomes, reports)
        result, error = None, None
        try:
            work = offers.get()
            result = None if work is None else self.run(work)
        except BaseException as raised:  # noqa: ASYNC103  raised again, or reported
            error = raised
        outcomes.put((result, error))
        failure = reports.get()
        if error is not None and not isinstance(error, Exception):
            raise error
        if failure is not None:
            raise failure
        return result

    async def _report(
        self,
        storage: Storage,
        event: InstructionEvent,
        offers: "SimpleQueue[Work | None]",
        outcomes: "SimpleQueue[Outcome]",
        reports: "SimpleQueue[BaseException | None]",
    ) -> None:
        failure: BaseException | None = None
        try:
            with trio.CancelScope(shield=True):
                await self._execute(storage, event, offers, outcomes)
        except Exception as error:
            failure = error
        finally:
            offers.put(None)
            reports.put(failure)

    async def _execute(
        self,
        storage: Storage,
        event: InstructionEvent,
        offers: "SimpleQueue[Work | None]",
        outcomes: "SimpleQueue[Outcome]",
    ) -> None:
        executor = Executor(storage, concurrency=1, grace=_GRACE)

        def handle(work: Work) -> Any:
            offers.put(work)
            result, error = outcomes.get()
            if error is not None:
                raise error
            return result

        terms = {"retries": self.retry_limit, "retry_delay": self.retry_delay}
        executor.handler(event.task_name, **terms)(handle)
        async with executor:
            taken = await storage.take_over(str(event.receipt), lease=self.lease)
            for receipt in taken.receipts.values():
                await executor.submit(taken_over(event, receipt, self.lease))


class _Reporter:
    """An open storage, in a thread that lasts as long as its process."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        opened: SimpleQueue[BaseException | None] = SimpleQueue()
        # A daemon: whoever waits for a report keeps the process, nothing else has to.
        self.thread = threading.Thread(target=self._main, args=(opened,), daemon=True)
        self.thread.start()
        if (failure := opened.get()) is not None:
            raise failure

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        trio.from_thread.run_sync(
            self._nursery.start_soon, function, *arguments, trio_token=self._token
        )

    def _main(self, opened: "SimpleQueue[BaseException | None]") -> None:
        try:
            trio.run(self._serve, opened)
        except BaseException as error:  # noqa: ASYNC103  raised in the thread that waits
            opened.put(error)

    async def _serve(self, opened: "SimpleQueue[BaseException | None]") -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with self.storage, trio.open_nursery() as self._nursery:
            opened.put(None)
            await trio.sleep_forever()


# By process, as what a thread has opened is not there after a fork; and by task.
_reporters: dict[tuple[int, type[InstructionTask]], _Reporter] = {}
_opening = threading.Lock()


def _reporter_of(task: type[InstructionTask]) -> _Reporter:
    key = (os.getpid(), task)
    with _opening:
        if key not in _reporters or not _reporters[key].thread.is_alive():
            _reporters[key] = _Reporter(task.open_storage())
        return _reporters[key]
