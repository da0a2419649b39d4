"""Storages and consumers: opened, drained and closed in the order that loses nothing."""

import attrs
import pytest
import trio

from planton import (
    Batch,
    Claim,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    StorageError,
    Task,
    health,
)
from planton.testing import EventCollector


class Shelf:
    """A storage of instructions, which notes what happens to it."""

    def __init__(self, said, name="storage", *, error=None):
        self.said, self.name, self.error = said, name, error
        self.is_open = False
        self.rows, self.released, self.done = [], [], []

    async def __aenter__(self):
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.said.append(f"{self.name} opens")
        self.is_open = True
        return self

    async def __aexit__(self, *exc):
        self.said.append(f"{self.name} closes")
        self.is_open = False

    async def serve(self, planton, *, task_status):
        self.said.append(f"{self.name} serves")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.said.append(f"{self.name} serves no more")

    async def schedule(self, request):
        assert self.is_open
        taken, self.rows = self.rows[: request.limit], self.rows[request.limit :]
        return Batch([Claim(instruction=row, receipt=f"r-{row}") for row in taken], active=0)

    async def release(self, claims):
        assert self.is_open
        self.released += [claim.instruction for claim in claims]

    async def complete(self, instruction):
        await trio.sleep(0.5)
        assert self.is_open
        self.done.append(instruction)

    def task(self, name, **options):
        options = {"concurrency": 10, "delay": 1.0, "cap": "strict", **options}
        return Task(name=name, schedule=self.schedule, release=self.release, **options)


@attrs.define(eq=False)
class Worker:
    """A consumer with some slots, which works for two seconds and reports the end."""

    shelf: Shelf
    tasks: tuple = ("task",)
    slots: int = 2
    work: float = 2.0
    most: int = 0
    asked: int = 0
    running: set = attrs.field(factory=set)
    events: list = attrs.field(factory=list)
    planton: Planton | None = None
    nursery: trio.Nursery | None = None

    def capacity(self, task_name):
        self.asked += 1
        return self.slots - len(self.running) if task_name in self.tasks else None

    async def submit(self, event):
        self.events.append(event)
        self.running.add(event.instruction)
        self.most = max(self.most, len(self.running))
        self.nursery.start_soon(self._work, event.instruction)

    async def serve(self, planton, *, task_status):
        self.planton = planton
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._host, stop)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                stop.set()

    async def _host(self, stop, *, task_status):
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self.nursery:
                task_status.started()
                await stop.wait()
        self.shelf.said.append("consumer drained")

    async def _work(self, instruction):
        await trio.sleep(self.work)
        await self.shelf.complete(instruction)
        self.running.discard(instruction)
        for name in self.tasks:
            self.planton.wake(name)


async def test_a_stop_loses_no_result():
    """Attempts stop, consumers drain and store their ends, services stop, storages close."""
    said = []
    shelf = Shelf(said)
    shelf.rows = ["a", "b", "c"]
    worker = Worker(shelf)

    async def service(planton, *, task_status):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            said.append("service ended")

    planton = Planton(
        storages=[shelf], consumers=[worker], services=[service], tasks=[shelf.task("task")]
    )
    async with planton:
        said.append("runs")
        await trio.sleep(1.5)

    assert ["a", "b"] == sorted(shelf.done)
    assert ["storage opens", "storage serves", "runs", "consumer drained"] == said[:4]
    assert {"service ended", "storage serves no more"} == set(said[4:6])
    assert ["storage closes"] == said[6:]
    assert 3.5 == trio.current_time()


async def test_no_more_is_claimed_than_the_consumer_can_take():
    """A slot that frees up wakes the task."""
    shelf = Shelf([])
    shelf.rows = list("abcdef")
    worker = Worker(shelf)
    planton = Planton(
        storages=[shelf], consumers=[worker], tasks=[shelf.task("task", delay=1000.0)]
    )
    async with planton:
        planton.wake()
        await trio.sleep(0.1)

        assert "full: the consumer has no free slot" not in planton.explain("task")[0]
        attempt = await planton.attempt("task")

        assert ("full", 0) == (attempt.outcome, attempt.limit)
        assert "full: the consumer has no free slot" in planton.explain("task")[0]
        await trio.sleep(10)

    assert list("abcdef") == sorted(shelf.done)
    assert 2 == worker.most


async def test_tasks_that_share_a_consumer_claim_no_more_than_it_has_slots_together():
    """They would see the same free slot otherwise."""
    shelf = Shelf([])
    shelf.rows = [str(number) for number in range(30)]
    names = tuple(f"t{number}" for number in range(5))
    worker = Worker(shelf, tasks=names, slots=3, work=1.0)

    async def slowly(request):
        await trio.sleep(0.01)
        return await shelf.schedule(request)

    tasks = [attrs.evolve(shelf.task(name, delay=0.1), schedule=slowly) for name in names]
    async with Planton(storages=[shelf], consumers=[worker], tasks=tasks):
        while len(shelf.done) < 30:
            await trio.sleep(0.1)

    assert 3 == worker.most


async def test_a_claim_that_hangs_holds_the_slots_from_no_other_task():
    """They wait for a moment, and go on."""
    shelf = Shelf([])
    shelf.rows = ["a"]
    worker = Worker(shelf, tasks=("task", "hung"))

    async def hang(request):
        await trio.sleep(300)
        return []

    hung = Task(name="hung", schedule=hang, cap="strict", concurrency=10, delay=0.0)
    planton = Planton(
        storages=[shelf],
        consumers=[worker],
        tasks=[hung, shelf.task("task")],
        grace=1,
    )
    async with planton:
        await trio.sleep(6)

        assert ["a"] == shelf.done


async def test_slots_that_a_claim_did_not_need_go_to_the_next_at_once():
    """In the order in which they asked for them."""
    shelf = Shelf([])
    times = {}

    async def nothing(request):
        times[request.task_name] = (trio.current_time(), request.limit)
        await trio.sleep(0.2)
        return []

    names = ("a", "b", "c")
    worker = Worker(shelf, tasks=names)
    tasks = [
        Task(name=name, schedule=nothing, cap="strict", concurrency=2, delay=1.0) for name in names
    ]
    async with Planton(consumers=[worker], tasks=tasks):
        await trio.sleep(1.9)

    assert [1.0, 1.2, 1.4] == sorted(round(time, 3) for time, _ in times.values())
    assert {2} == {limit for _, limit in times.values()}


async def test_listeners_hear_of_what_a_consumer_took():
    """They look on: one that raises takes nothing back."""
    shelf = Shelf([])
    shelf.rows = ["a"]
    worker = Worker(shelf)
    planton = Planton(storages=[shelf], consumers=[worker], tasks=[shelf.task("task")])

    @planton.on(InstructionEvent)
    def listen(event):
        raise ValueError("no")

    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(1.5)

    assert ["a"] == seen.instructions == shelf.done
    assert [] == shelf.released
    assert ["no"] == [str(error) for error in seen.errors]


async def test_what_a_consumer_refuses_is_released():
    """It has not taken it."""
    shelf = Shelf([])
    shelf.rows = ["a"]

    class Refusing(Worker):
        async def submit(self, event):
            raise OSError("broker is away")

    planton = Planton(storages=[shelf], consumers=[Refusing(shelf)], tasks=[shelf.task("task")])
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(1.5)

    assert ["a"] == shelf.released
    assert ("deliver", "broker is away") == (
        seen.of(ErrorEvent)[0].stage,
        str(seen.errors[0]),
    )


async def test_what_a_consumer_took_stays_taken_when_a_listener_runs_out_of_time():
    """At a stop, released it would be done twice."""
    shelf = Shelf([])
    shelf.rows = ["a", "b"]
    worker = Worker(shelf, work=0.1)
    planton = Planton(storages=[shelf], consumers=[worker], tasks=[shelf.task("task")], grace=5)

    @planton.on(InstructionEvent)
    async def listen(event):
        await trio.sleep(100)

    EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(1.5)

    assert ["a"] == shelf.done
    assert ["b"] == shelf.released


async def test_nothing_is_claimed_for_a_task_that_nobody_takes(caplog):
    """Start-up, status and health say so, until somebody listens."""
    shelf = Shelf([])
    shelf.rows = ["a"]
    worker = Worker(shelf, tasks=("other",))
    planton = Planton(storages=[shelf], consumers=[worker], tasks=[shelf.task("task")])
    nobody = "no consumer takes the task, and nothing listens to InstructionEvent"
    async with planton:
        await trio.sleep(5)
        (status,) = planton.status()

        assert ["a"] == shelf.rows
        assert not status.consumed
        assert (f"nothing is claimed for 'task': {nobody}",) == health(planton).warnings
        assert f"nothing is claimed: {nobody}" in planton.explain("task")[0]
        seen = EventCollector(planton)
        await trio.sleep(0.01)

        assert ["a"] == seen.instructions
        assert planton.status()[0].consumed
    (record,) = (each for each in caplog.records if each.levelname == "WARNING")

    assert f"nothing is claimed for 'task': {nobody}" == record.getMessage()


async def test_a_task_that_nobody_takes_is_no_hot_loop(bench):
    """Not even without a delay: it is woken when somebody listens."""
    shelf = Shelf([])
    planton = Planton(storages=[shelf], tasks=[shelf.task("task", delay=0)])
    async with planton:
        await trio.sleep(4.5)

        assert 5 == planton.status()[0].attempt_number


async def test_two_consumers_for_one_task_are_an_error_at_start():
    """It names both."""
    shelf = Shelf([])

    class First(Worker):
        def __repr__(self):
            return "First()"

    class Second(Worker):
        def __repr__(self):
            return "Second()"

    planton = Planton(
        storages=[shelf],
        consumers=[First(shelf), Second(shelf)],
        tasks=[shelf.task("task")],
    )
    with pytest.raises(InvalidArgumentError, match=r"First\(\) and Second\(\) both take task 'ta"):
        await planton.run()
    planton.unregister("task")
    async with planton:
        with pytest.raises(InvalidArgumentError, match=r"First\(\) and Second\(\) both take"):
            planton.register(shelf.task("task"))

        assert [] == planton.names()
    assert [] != shelf.said


async def test_a_storage_that_is_open_stays_its_owners():
    """Whoever opened it closes it."""
    said = []
    shelf = Shelf(said)
    async with shelf:
        async with Planton(storages=[shelf]):
            pass

        assert ["storage opens", "storage serves", "storage serves no more"] == said
    assert "storage closes" == said[-1]


async def test_storages_close_in_the_reverse_order():
    """The later one may build on the earlier."""
    said = []
    async with Planton(storages=[Shelf(said, "a"), Shelf(said, "b")]):
        pass

    assert ["a opens", "b opens"] == said[:2]
    assert ["b closes", "a closes"] == said[-2:]


@pytest.mark.parametrize("how", ("run", "block", "start"))
async def test_a_storage_that_cannot_be_opened_is_the_error_of_the_start(how):
    """As it is, not in a group; what was open is closed again."""
    said = []
    error = StorageError("app.db", "call `await storage.migrate()` first")
    planton = Planton(storages=[Shelf(said, "a"), Shelf(said, "b", error=error)])
    async with trio.open_nursery() as nursery:
        with pytest.raises(StorageError) as caught:
            if how == "run":
                await planton.run()
            elif how == "block":
                async with planton:
                    said.append("never")
            else:
                await nursery.start(planton.run)

    assert error is caught.value
    assert ["a opens", "a closes"] == said
    assert not planton.is_running


async def test_an_error_of_closing_leaves_the_run_as_it_is():
    """The block's own goes first."""

    class Failing(Shelf):
        async def __aexit__(self, *exc):
            raise StorageError("app.db", "cannot be closed")

    with pytest.raises(StorageError, match="cannot be closed"):
        async with Planton(storages=[Failing([])]):
            pass
    with pytest.raises(ZeroDivisionError):
        async with Planton(storages=[Failing([])]):
            raise ZeroDivisionError


async def test_a_run_that_ends_by_itself_ends_the_block():
    """A storage whose own tasks fail cancels what it is open for."""

    class Crashing(Shelf):
        async def __aenter__(self):
            self.block = self._open()
            return await self.block.__aenter__()

        async def __aexit__(self, *exc):
            return await self.block.__aexit__(*exc)

        def _open(self):
            from contextlib import asynccontextmanager

            @asynccontextmanager
            async def block():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.crash)
                    yield self

            return block()

        async def crash(self):
            await trio.sleep(3)
            raise StorageError("app.db", "gone")

    with pytest.raises(StorageError, match="gone"):
        async with Planton(storages=[Crashing([])]):
            await trio.sleep_forever()

    assert 3 == trio.current_time()


async def test_a_stop_while_storages_open_ends_it_at_once():
    """There is nothing to drain yet."""

    class Slow(Shelf):
        async def __aenter__(self):
            await trio.sleep(1000)

    planton = Planton(storages=[Slow([])], grace=50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planton.run)
        await trio.sleep(1)
        await planton.terminate()

    assert 1 == trio.current_time()


async def test_a_consumer_that_drains_for_too_long_is_told_to_break_off():
    """In time to store what it has."""
    said = []

    class Stubborn:
        def capacity(self, task_name):
            return 1

        async def submit(self, event):
            pass

        async def serve(self, planton, *, task_status):
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await planton.wait_until_aborted()
                    said.append(trio.current_time())

    async with Planton(consumers=[Stubborn()], grace=10):
        await trio.sleep(1)

    assert [10.0] == said


async def test_terminate_called_by_a_consumer_returns_at_once():
    """The drain waits for it."""
    shelf = Shelf([])
    shelf.rows = ["a"]

    class Ending(Worker):
        async def _work(self, instruction):
            await self.planton.terminate()
            await super()._work(instruction)

    planton = Planton(storages=[shelf], consumers=[Ending(shelf)], tasks=[shelf.task("task")])
    await planton.run()

    assert ["a"] == shelf.done
    assert 3.5 == trio.current_time()


async def test_a_consumer_whose_capacity_raises_is_taken_to_take_the_task():
    """Its attempts tell of the error; `status`, which a probe asks, does not fail with it."""

    class Broken:
        def capacity(self, task_name):
            raise ValueError("out of order")

        async def submit(self, event):
            pass

    task = Task(name="task", schedule=Shelf([]).schedule, cap="strict")
    planton = Planton(tasks=[task], consumers=[Broken()])

    assert [True] == [each.consumed for each in planton.status()]


async def test_a_consumer_whose_capacity_raises_fails_the_attempt():
    """Not the run."""

    answers = [1, 1, "many", SystemExit(3)]

    class Odd:
        def capacity(self, task_name):
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        async def submit(self, event):
            pass

    async def schedule(request):
        return []

    task = Task(name="task", schedule=schedule, cap="strict", delay=1.0)
    planton = Planton(consumers=[Odd()], tasks=[task])
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(2.5)

        assert planton.status()[0].consumed, "it fails, and is asked again"
    assert ["error", "error"] == seen.outcomes
    assert "'many'" in str(seen.errors[0])
    assert "SystemExit" in str(seen.errors[1])


@pytest.mark.parametrize(
    ("options", "problem"),
    (
        ({"storages": 5}, "storages is 5: give a list of them"),
        ({"storages": [object()]}, "it has no __aenter__, is_open, serve"),
        ({"consumers": [print]}, "it has no capacity, submit"),
        ({"consumers": [Worker(Shelf([]))] * 2}, "it is there more than once"),
        ({"consumers": [Worker]}, "it is a class: give an object of it"),
    ),
)
def test_parts_that_cannot_be_used_are_refused(options, problem):
    """It names what is missing."""
    options = {
        name: value * 1 if isinstance(value, list) else value for name, value in options.items()
    }
    with pytest.raises(InvalidArgumentError) as caught:
        Planton(**options)

    assert problem in str(caught.value)


def test_what_is_served_already_is_no_service():
    """Nor listens a consumer by hand to what it gets anyway."""
    shelf = Shelf([])
    worker = Worker(shelf)
    for service in (shelf.serve, worker.serve):
        with pytest.raises(InvalidArgumentError, match="leave it out"):
            Planton(storages=[shelf], consumers=[worker], services=[service])
    planton = Planton(consumers=[worker])
    with pytest.raises(InvalidArgumentError, match="leave it out"):
        planton.on(InstructionEvent, worker.submit)


class Relay(Worker):
    """A consumer that takes many at a time, and answers what it is told to."""

    answers = None

    async def submit_many(self, events):
        await trio.sleep(1)
        self.events.append([event.instruction for event in events])
        return [None] * len(events) if self.answers is None else self.answers

    async def serve(self, planton, *, task_status):
        task_status.started()


async def test_a_consumer_of_many_is_given_all_that_was_claimed_in_one_call():
    """Listeners hear of each after that."""
    shelf = Shelf([])
    shelf.rows = ["a", "b", "c"]
    relay = Relay(shelf, slots=10)
    planton = Planton(storages=[shelf], consumers=[relay], tasks=[shelf.task("task", delay=100)])
    heard = []
    planton.on(InstructionEvent, lambda event: heard.append(event.instruction))
    async with planton:
        planton.wake("task")
        await trio.sleep(2)

    assert [["a", "b", "c"]] == relay.events
    assert ["a", "b", "c"] == heard
    assert [] == shelf.released


@pytest.mark.parametrize(
    ("answers", "released", "told"),
    (
        ([None, OSError("full"), None], ["b"], ["OSError"]),
        ([None], ["a", "b", "c"], ["PlantonError"]),
        ([None, False, None], ["a", "b", "c"], ["TypeError"]),
        (5, ["a", "b", "c"], ["TypeError"]),
    ),
)
async def test_what_a_consumer_of_many_does_not_take_is_released(answers, released, told):
    """If its answer makes no sense, all of it."""
    shelf = Shelf([])
    shelf.rows = ["a", "b", "c"]
    relay = Relay(shelf, slots=10)
    relay.answers = answers
    planton = Planton(storages=[shelf], consumers=[relay], tasks=[shelf.task("task", delay=100)])
    seen = EventCollector(planton)
    async with planton:
        planton.wake("task")
        await trio.sleep(2)

    assert released == shelf.released
    assert told == [type(event.error).__name__ for event in seen.of(ErrorEvent)]


async def test_an_error_of_a_listener_does_not_take_back_what_a_consumer_of_many_took():
    """It is told, and the other listeners hear of it."""
    shelf = Shelf([])
    shelf.rows = ["a", "b"]
    relay = Relay(shelf, slots=10)
    planton = Planton(storages=[shelf], consumers=[relay], tasks=[shelf.task("task", delay=100)])
    planton.on(InstructionEvent, lambda event: 1 / 0)
    seen = EventCollector(planton)
    async with planton:
        planton.wake("task")
        await trio.sleep(2)

    assert [] == shelf.released
    assert ["a", "b"] == [event.instruction for event in seen.of(InstructionEvent)]
    assert 2 == len(seen.of(ErrorEvent))
