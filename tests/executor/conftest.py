"""One executor, three storages."""

import pytest
import trio.testing

from planton import ErrorEvent, InstructionEvent, Planton
from planton.testing import MemoryStorage
from planton_executor import Executor, FailedEvent, IdleEvent, StartedEvent, SucceededEvent
from planton_sqlite import SQLiteStorage

STORAGES = ("memory", "sqlite", "postgres")


def open_storage(kind, where):
    """Open the storage of a test."""
    if kind == "postgres":
        from planton_postgres import PostgresStorage

        return PostgresStorage(where)
    return MemoryStorage() if kind == "memory" else SQLiteStorage(where)


@pytest.fixture(params=STORAGES)
def kind(request):
    return request.param


@pytest.fixture
def where(kind, request, tmp_path):
    """Where the data is: what a storage is opened with."""
    return request.getfixturevalue("schema_dsn") if kind == "postgres" else tmp_path / "app.db"


@pytest.fixture
async def storage(kind, where):
    async with open_storage(kind, where) as storage:
        await storage.migrate()
        yield storage


class Seen:
    """All that an executor told, as short words in their order."""

    def __init__(self, executor: Executor) -> None:
        self.words = []
        self.failed = []
        self.succeeded = []
        self.errors = []
        executor.on(StartedEvent, lambda event: self._add("started", event))
        executor.on(SucceededEvent, lambda event: self._add("succeeded", event))
        executor.on(FailedEvent, self.fail)
        executor.on(ErrorEvent, self.note_error)
        executor.on(IdleEvent, lambda event: self.words.append("idle"))
        self._changed = trio.Event()

    def fail(self, event):
        self._add("failed", event)

    def note_error(self, event):
        self.errors.append(event.error)

    def _add(self, word, event):
        self.words.append(f"{word} {event.work.instruction}")
        if word != "started":
            getattr(self, word).append(event)
            self._changed.set()
            self._changed = trio.Event()

    async def until(self, count):
        """Wait until so many have ended."""
        with trio.fail_after(10):
            while len(self.failed) + len(self.succeeded) < count:
                await self._changed.wait()


class Bench:
    """An executor beside a Planton with one queue task, on a storage."""

    def __init__(self, storage, **options):
        self.storage = storage
        self.executor = Executor(storage, **options)
        self.seen = Seen(self.executor)

    def planton(self, *, name="task", concurrency=10, delay=0.02, **options):
        """Make the Planton that feeds the executor."""
        task = self.storage.queue_task(name, concurrency=concurrency, delay=delay, **options)
        return Planton(tasks=[task], storages=[self.storage], consumers=[self.executor])

    def planton_by_hand(self, **options):
        """Make it with a listener, a capacity and a service instead of a consumer."""
        options = {"concurrency": 10, "delay": 0.02, **options}
        task = self.storage.queue_task("task", capacity=self.executor.capacity, **options)
        planton = Planton(tasks=[task], services=[self.storage.serve, self.executor.serve])
        planton.on(InstructionEvent, self.executor.submit)
        return planton

    async def enqueue(self, *instructions, name="task", **options):
        for instruction in instructions:
            assert await self.storage.enqueue(name, instruction, **options)

    async def claim(self, *instructions, **options):
        """Queue instructions and claim all that are queued, as a dispatcher would."""
        await self.enqueue(*instructions)
        events = []
        planton = Planton(tasks=[self.storage.queue_task("task", concurrency=10, **options)])
        planton.on(InstructionEvent, events.append)
        await planton.attempt("task")
        return events

    async def record(self, instruction="a", name="task"):
        found = await self.storage.find(task_name=name)
        (only,) = [each for each in found if each.instruction == instruction]
        return only


@pytest.fixture
def bench(storage):
    return lambda **options: Bench(storage, **options)


def run_in_virtual_time(function, *, clock, instruments):
    clock = clock or trio.testing.MockClock(autojump_threshold=0)
    return trio.run(function, clock=clock, instruments=instruments)


def pytest_collection_modifyitems(items):
    """Give the autojump clock to the tests on the storage in memory alone."""
    for item in items:
        if "memory_bench" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trio(run=run_in_virtual_time), append=False)


@pytest.fixture
def memory_bench():
    """On the storage in memory, in virtual time."""
    return lambda latency=0.0, **options: Bench(MemoryStorage(latency=latency), **options)
