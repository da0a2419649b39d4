"""How a Planton keeps itself registered, and what it tells of its tasks."""

from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio

from planton import ErrorEvent, InstructionEvent, Planton, StorageError, Task, TaskStatus
from planton.storage import TaskReport
from planton.storage._fleet import (
    Reporter,
    _within_size,
    keep_registered,
    new_registration,
    version_of,
)
from planton.testing import EventCollector, MemoryStorage

STATUS = TaskStatus(
    name="task",
    state="waiting",
    attempt_number=0,
    last_attempt_at=None,
    next_attempt_at=None,
    active=None,
    concurrency=1,
    cap="strict",
    last_error=None,
    consecutive_errors=0,
    overdue=False,
)


@attrs.define(eq=False)
class Broken:
    """A registry whose calls fail while it is broken; keeps when it was called."""

    registry: object
    is_broken: bool = False
    calls: list = attrs.field(factory=list)

    def __getattr__(self, name):
        async def call(*arguments):
            self.calls.append((name, trio.current_time()))
            if self.is_broken:
                raise StorageError("app.db", "is away")
            return await getattr(self.registry, name)(*arguments)

        return call


class Hanging(Broken):
    """A registry that takes dispatchers and never says so."""

    async def register(self, registration):
        await trio.sleep_forever()


def no_tags(task_name):
    """No task of theirs is one of a storage."""


def times(broken, name):
    return [time for called, time in broken.calls if called == name]


@pytest.fixture
def storage():
    return MemoryStorage()


@pytest.fixture
def broken(storage):
    return Broken(storage.registry)


@pytest.fixture
def planton(broken, storage):
    async def serve(planton, *, task_status):
        task_status.started()
        await keep_registered(planton, broken, no_tags)

    return Planton(tasks=[storage.queue_task("task", delay=3600)], services=[serve])


async def test_a_beat_comes_every_five_seconds(planton, broken, storage):
    """One call each; at the end the row goes."""
    async with planton:
        await trio.sleep(16)
        (found,) = await storage.dispatchers()

        assert 1 == found.tasks
    assert [0, 5, 10, 15] == times(broken, "beat")
    assert ([0], [16]) == (times(broken, "register"), times(broken, "deregister"))
    assert [] == await storage.dispatchers()


async def test_asked_to_stop_it_terminates_at_its_next_beat(planton, storage):
    """And is gone from the fleet when it has."""
    with trio.fail_after(6):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(planton.run)
            await trio.sleep(1)
            await storage.request_stop()

    assert 5 == trio.current_time()
    assert [] == await storage.dispatchers()


async def test_a_long_drain_is_not_taken_for_death(storage):
    """It beats on until the drain is over, and is asked no second time."""

    async def schedule(request):
        await trio.sleep(100)
        return []

    tasks = [Task(name="task", schedule=schedule, cap="strict", delay=0)]
    planton = Planton(tasks=tasks, services=[storage.serve], grace=200)
    planton.on(InstructionEvent, print)
    states = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planton.run)
        await trio.sleep(1)
        await storage.request_stop()
        for _ in range(3):
            await trio.sleep(33)
            states += [each.state for each in await storage.dispatchers()]

    assert ["stopping"] * 3 == states
    assert [] == await storage.dispatchers()


async def test_a_failing_beat_is_reported_and_tried_again_later_and_later(planton, broken):
    """Dispatching goes on; when it works again all is as before."""
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(6)
        broken.is_broken = True
        await trio.sleep(300)
        failed = len(seen.errors)
        broken.is_broken = False
        await trio.sleep(80)
        assert failed == len(seen.errors)

    beats = times(broken, "beat")
    assert [0, 5, 10, 20, 40, 80, 140] == beats[:7]
    assert 5 == beats[-1] - beats[-2]
    assert {"app.db: is away"} == set(map(str, seen.errors))


async def test_a_database_that_is_away_at_the_end_holds_nothing_up(planton, broken, storage):
    """Its row goes later, as that of one that died."""
    async with planton:
        await trio.sleep(1)
        broken.is_broken = True

    assert 1 == trio.current_time()
    assert 1 == len(await storage.dispatchers())


async def test_a_database_that_hangs_at_the_end_is_given_a_second(storage):
    """Not more, whatever the grace."""
    tasks = [storage.queue_task("task", delay=3600)]
    planton = Planton(tasks=tasks, services=[storage.serve])
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(1)
        storage.latency = 1000.0

    assert 2 == trio.current_time()


async def test_one_that_was_forgotten_registers_anew(planton, broken, storage):
    """Its machine slept; all it has to say is said again."""
    async with planton:
        await trio.sleep(1)
        (first,) = await storage.dispatchers()
        await storage.registry.deregister(first.id)
        await trio.sleep(5)
        assert [first.id] == [each.id for each in await storage.dispatchers()]
        assert ["task"] == [each.status.name for each in await storage.decisions()]


async def test_what_a_planton_explains_is_read_from_the_storage(storage):
    """Also that a task has gone."""
    planton = Planton(tasks=[storage.queue_task("task", delay=0.7)], services=[storage.serve])
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(6)
        (said,) = await storage.decisions("task")
        (status,) = planton.status()
        planton.unregister("task")
        await trio.sleep(5)
        after = await storage.decisions("task")

    assert "nothing due" in said.decisions[-1]
    assert ("waiting", "strict", False) == (
        said.status.state,
        said.status.cap,
        said.status.overdue,
    )
    assert abs(status.last_attempt_at - said.status.last_attempt_at) < timedelta(hours=1)
    assert [] == after


async def test_what_a_task_did_between_two_beats_is_told_at_the_second(storage):
    """Though it is idle again by then; that it looked again in vain is not."""
    planton = Planton(tasks=[storage.queue_task("task", delay=0.7)], services=[storage.serve])
    reported_at, told = [], []

    @planton.on(InstructionEvent)
    async def consume(event):
        await storage.complete(event.receipt)

    async with planton:
        await trio.sleep(6)
        for _ in range(3):
            await storage.enqueue("task", str(trio.current_time()))
            await trio.sleep(5)
            (said,) = await storage.decisions("task")
            told.append(sum("dispatched 1" in each for each in said.decisions))
            reported_at.append(said.reported_at)
        await trio.sleep(20)
        (idle,) = await storage.decisions("task")

    assert [1, 2, 3] == told
    assert "nothing due" in said.decisions[-1]
    assert idle.reported_at == reported_at[-1]


def named(*names, **changes):
    return [attrs.evolve(STATUS, name=name, **changes) for name in names]


def test_what_changed_is_told_first_and_what_went_on_once_a_minute():
    """An idle attempt more is nothing new."""
    reporter = Reporter()
    one, two = named("one", "two")
    assert [one, two] == reporter.choose([one, two], 0)
    reporter.note([one], [], 0)
    reporter.note([two], [], 10)
    assert [] == reporter.choose(named("one", "two", last_attempt_at=datetime.now(UTC)), 59)
    assert [one] == reporter.choose([two, one], 60)
    assert [one, two] == reporter.choose([two, one], 70)
    (worse,) = named("two", last_error="OSError: down")
    assert [worse, one] == reporter.choose([one, worse], 70)


def test_busy_tasks_take_turns_after_those_whose_health_has_changed():
    """So each is told in the end, however many have something to tell at every beat."""
    reporter = Reporter()
    for at, state in enumerate(named("c", "b", "a")):
        reporter.note([state], [], at)
    busy = named("a", "b", "c", decisions=1)
    (hung,) = named("a", decisions=1, overdue=True)

    assert ["c", "b", "a"] == [each.name for each in reporter.choose(busy, 3)]
    assert ["a", "c", "b"] == [each.name for each in reporter.choose([hung, *busy[1:]], 3)]


def test_very_many_tasks_are_looked_at_in_turn():
    """A thousand at each beat."""
    reporter = Reporter()
    places = []
    for _ in range(4):
        places.append(reporter.place)
        reporter.turn(2500)

    assert [0, 1000, 2000, 0] == places


def test_a_beat_has_a_size():
    """About 64 KiB; what is left comes with the next."""
    chosen = named(*map(str, range(1000)), last_error="x" * 10_000)
    reports = ((each.name, TaskReport.to_text(each, ["y" * 300] * 20)) for each in chosen)
    told = list(_within_size(reports))

    assert 10 < len(told) < 30
    assert sum(len(text) for _, text in told) < 70_000


async def test_ten_thousand_tasks_are_told_in_the_end(storage):
    """A little at each beat."""
    tasks = [storage.queue_task(str(number), delay=1e6) for number in range(3000)]
    planton = Planton(tasks=tasks, services=[storage.serve])
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(1)
        assert 0 < len(await storage.decisions()) < 1000
        await trio.sleep(200)
        assert 3000 == len(await storage.decisions())


def test_a_report_is_what_every_database_takes_and_reads_as_it_was():
    """Times by the clock of whoever keeps it."""
    now = datetime.now(UTC)
    status = attrs.evolve(
        STATUS,
        last_error="NUL \0 and \udcff",
        last_attempt_at=now - timedelta(seconds=10),
        next_attempt_at=now + timedelta(seconds=20),
    )
    text = TaskReport.to_text(status, [str(number) for number in range(20)])
    stored_at = datetime(2000, 1, 1, tzinfo=UTC)
    read = TaskReport.of("id", "task", stored_at, text[:-1] + ', "of a later version": 1}')

    assert "\\u0000" not in text
    assert ("NUL ␀ and ?", "id", stored_at) == (
        read.status.last_error,
        read.dispatcher_id,
        read.reported_at,
    )
    assert 10 == round((stored_at - read.status.last_attempt_at).total_seconds())
    assert 20 == round((read.status.next_attempt_at - stored_at).total_seconds())
    assert ("0", *map(str, range(11, 20))) == read.decisions


def test_a_bundle_without_metadata_has_a_version_all_the_same():
    """It is not known."""
    assert "?" == version_of("no-such-distribution")
    assert new_registration().version == version_of("planton") != "?"


async def test_attempts_begin_once_it_is_registered(storage):
    """So that a request to stop reaches all who claim."""
    registered = []

    async def schedule(request):
        registered.append(len(await storage.dispatchers()))
        return []

    tasks = [Task(name="task", schedule=schedule, cap="strict", delay=0.25)]
    planton = Planton(tasks=tasks, services=[storage.serve])
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(1)

    assert [1] * 3 == registered[:3]


@pytest.mark.parametrize(("kind", "begin"), ((Broken, 0.25), (Hanging, 1.25)))
async def test_attempts_do_not_wait_for_a_registry_that_does_not_answer(storage, kind, begin):
    """Not once it has failed, and for no more than a second."""
    registry = kind(storage.registry, is_broken=True)
    attempts = []

    async def schedule(request):
        attempts.append(trio.current_time())
        return []

    async def serve(planton, *, task_status):
        await keep_registered(planton, registry, no_tags, task_status=task_status)

    tasks = [Task(name="task", schedule=schedule, cap="strict", delay=0.25)]
    planton = Planton(tasks=tasks, services=[serve])
    planton.on(InstructionEvent, print)
    planton.on(ErrorEvent, lambda event: None)
    async with planton:
        await trio.sleep(2)

    assert begin == attempts[0]
