"""Work in steps, on each storage."""

import json
import threading
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio

from planton.testing import MemoryStorage
from planton_executor import (
    AdvancedEvent,
    Executor,
    StateError,
    Step,
    StepContext,
    Steps,
    done,
    later,
    then,
)


@attrs.frozen
class ReadName(Step):
    filename: str
    retry_limit = 5
    retry_delay = 0.01

    async def step(self, context):
        name = await trio.Path(self.filename).read_text()
        return then(SayHello(name.strip()))


@attrs.frozen
class SayHello(Step):
    name: str

    async def step(self, context):
        return done(f"Hello, {self.name}")


def greeter(one, **options):
    steps = Steps(one.executor, "Greeter", [ReadName, SayHello], **options)
    advanced = []
    one.executor.on(AdvancedEvent, lambda event: advanced.append((event.state, event.run_in)))
    return steps, advanced


async def test_the_tutorial_of_pg_task(bench, tmp_path):
    """Six tries, the error in the table; fix the world, retry, and it greets."""
    one = bench()
    steps, advanced = greeter(one)
    path = tmp_path / "name.txt"
    state = {"Greeter": {"ReadName": {"filename": str(path)}}}
    assert await steps.enqueue("a", ReadName(str(path)))
    async with one.planton(name="Greeter"):
        await one.seen.until(6)
        rests = await one.record("a", "Greeter")

        assert ("dead", 6, state) == (rests.status, rests.delivery, rests.payload)
        assert "No such file" in rests.error
        path.write_text("Fixed World\n")
        await one.storage.retry("Greeter")
        await one.seen.until(7)
    found = await one.record("a", "Greeter")

    assert ("succeeded", "Hello, Fixed World") == (found.status, found.result)
    assert [({"Greeter": {"SayHello": {"name": "Fixed World"}}}, None)] == advanced


async def test_work_that_was_put_into_the_queue_by_hand(bench, tmp_path):
    """With nothing but the state: the step's own retries are granted."""
    one = bench()
    greeter(one)
    state = {"Greeter": {"ReadName": {"filename": str(tmp_path / "name.txt")}}}
    await one.enqueue("a", name="Greeter", payload=state)
    async with one.planton(name="Greeter"):
        await one.seen.until(6)

    found = await one.record("a", "Greeter")

    assert ("dead", 6) == (found.status, found.delivery)


@attrs.frozen
class First(Step):
    async def step(self, context):
        return then(Hang())


@attrs.frozen
class Hang(Step):
    def step(self, context):
        context.resources.wait(10)
        return done()


@pytest.mark.parametrize("kind", ("memory",))
async def test_a_sync_step_that_goes_on_keeps_its_claim(bench, caplog):
    """Its thread may yet do the work; that it has come to this step is stored already."""
    one = bench(grace=0.1)
    let_go, is_stored = threading.Event(), trio.Event()
    steps = Steps(one.executor, "Machine", [First, Hang], resources=let_go)
    one.executor.on(AdvancedEvent, lambda event: is_stored.set())
    await steps.enqueue("a", First())
    with trio.fail_after(10):
        async with one.planton(name="Machine"):
            await is_stored.wait()
    let_go.set()

    assert "running" == (await one.record("a", "Machine")).status
    assert [] == one.seen.errors
    assert "the thread of 'a', task 'Machine', goes on: its lease is left" in caplog.text


@attrs.frozen
class Wait(Step):
    times: int
    at: datetime

    async def step(self, context):
        return later(Wait(self.times - 1, self.at), 0.2) if self.times else done()


async def test_a_delayed_step_holds_no_slot_while_it_waits(bench):
    """Neither of the cap nor of the executor."""
    one = bench(concurrency=1)
    steps = Steps(one.executor, "Waiter", [Wait])
    put_off = []

    @one.executor.on(AdvancedEvent)
    async def look(event):
        active = await one.storage.get_active_instructions("Waiter")
        found = await one.record(event.work.instruction, "Waiter")
        put_off.append((event.run_in, active, found.status, found.payload))

    now = datetime.fromisoformat("2026-03-27T12:00:00+00:00")
    await steps.enqueue("a", Wait(1, now))
    async with one.planton(name="Waiter"):
        await one.seen.until(1)
    state = {"Waiter": {"Wait": {"times": 0, "at": now.isoformat()}}}

    assert [(0.2, [], "queued", state)] == put_off
    assert Wait(0, now) == steps.load(state)


@attrs.frozen
class Bad(Step):
    returns: str

    async def step(self, context):
        others = {"other": then(SayHello("x")), "none": None, "set": then(Bad({1: {2}}))}
        return others[self.returns]


@pytest.mark.parametrize(
    ("payload", "problem"),
    (
        ({"Greeter": {"Dance": {}}}, "no step 'Dance': it has Bad, ReadName"),
        ({"Greeter": {"ReadName": {"path": "a"}}}, "required field missing @ ReadName.filename"),
        ({"Greeter": {"ReadName": {"filename": "a", "old": 1}}}, "extra fields found (old)"),
        ({"Greeter": {"ReadName": [1]}}, "no longer fits"),
        ({"Other": {"ReadName": {}}}, "not of the form {'Greeter': {<step>"),
        (None, "its state is None"),
        ({"Greeter": {"Bad": {"returns": "none"}}}, "step Bad returned None: return then(step)"),
        ({"Greeter": {"Bad": {"returns": "other"}}}, "SayHello(name='x') is none of its steps"),
        ({"Greeter": {"Bad": {"returns": "set"}}}, "is not JSON"),
    ),
)
async def test_what_cannot_go_on_rests_with_its_error_and_can_be_retried(
    memory_bench, payload, problem
):
    """The state is as it was; there is no point in trying again before the code is changed."""
    one = memory_bench()
    Steps(one.executor, "Greeter", [ReadName, Bad])
    await one.enqueue("a", name="Greeter", payload=payload, retries=3)
    async with one.planton(name="Greeter"):
        await one.seen.until(1)
    found = await one.record("a", "Greeter")

    assert ("failed", payload) == (found.status, found.payload)
    assert problem in found.error
    assert ["state"] == [event.reason for event in one.seen.failed]
    assert 1 == await one.storage.retry("Greeter")


@attrs.frozen
class Count(Step):
    number: int = 0
    upto: int = 3
    retry_limit = 1
    retry_delay = staticmethod(lambda number: 0.01 * number)

    async def step(self, context: StepContext):
        context.resources.append((self.number, context.tries))
        if context.tries == 1 and self.number == 1:
            raise ValueError("once")
        return done(self.number) if self.number == self.upto else then(Count(self.number + 1))


async def test_each_step_has_retries_of_its_own(bench):
    """And is told which try it is."""
    one = bench()
    seen = []
    steps = Steps(one.executor, "Counter", [Count], resources=seen)
    await steps.enqueue("a", Count())
    async with one.planton(name="Counter"):
        await one.seen.until(2)

    assert [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1)] == seen
    assert 3 == (await one.record("a", "Counter")).result


@attrs.frozen
class Slow(Step):
    seconds: float
    number: int = 1

    async def step(self, context):
        context.resources.append(self.number)
        await trio.sleep(self.seconds)
        return then(Slow(self.seconds, self.number + 1)) if self.number < 5 else done()


async def test_the_time_limit_is_that_of_one_step(memory_bench):
    """Of the machine, and of the instruction; not of all steps together."""
    one = memory_bench()
    seen = []
    steps = Steps(one.executor, "Slow", [Slow], timeout=10, resources=seen)
    await steps.enqueue("a", Slow(8), timeout=10)
    await steps.enqueue("b", Slow(11))
    async with one.planton(name="Slow"):
        with trio.fail_after(100):
            while len(one.seen.failed) + len(one.seen.succeeded) < 2:
                await trio.sleep(1)

    assert [("b", "timeout")] == [(e.work.instruction, e.reason) for e in one.seen.failed]
    assert [("a", 40)] == [(e.work.instruction, round(e.duration)) for e in one.seen.succeeded]


async def test_what_is_being_stored_is_not_broken_off(memory_bench):
    """A step that was done in time is, however long it takes to store that."""
    one = memory_bench(latency=3)
    seen = []
    steps = Steps(one.executor, "Slow", [Slow], timeout=5, resources=seen)
    await steps.enqueue("a", Slow(4))
    async with one.planton(name="Slow"):
        await trio.sleep(60)

    assert [1, 2, 3, 4, 5] == seen
    assert [] == one.seen.failed


async def test_a_stop_lets_the_step_finish_and_another_process_goes_on(memory_bench):
    """From the state that was stored last, at once."""
    one = memory_bench()
    seen = []
    steps = Steps(one.executor, "Slow", [Slow], resources=seen)
    await steps.enqueue("a", Slow(4))
    async with one.planton(name="Slow"):
        await trio.sleep(6)
    found = await one.record("a", "Slow")

    assert [1, 2] == seen
    assert ("queued", {"Slow": {"Slow": {"seconds": 4, "number": 3}}}) == (
        found.status,
        found.payload,
    )
    assert [] == one.seen.failed


async def test_a_stop_does_not_wait_for_a_storage_that_is_away(memory_bench, caplog):
    """The state that it came to is lost, and the log says of which work."""
    one = memory_bench(grace=3)
    seen = []
    steps = Steps(one.executor, "Slow", [Slow], resources=seen)
    await steps.enqueue("a", Slow(4))
    async with one.planton(name="Slow"):
        await trio.sleep(3)
        one.storage.connection.execute("ALTER TABLE planton_active RENAME TO gone")
        await trio.sleep(3)
    one.storage.connection.execute("ALTER TABLE gone RENAME TO planton_active")

    assert 11 == round(trio.current_time())
    assert "the ends of 1 instructions could not be stored" in caplog.text
    assert ("running", 1) == (
        (await one.record("a", "Slow")).status,
        (await one.record("a", "Slow")).payload["Slow"]["Slow"]["number"],
    )


async def test_a_step_that_lost_its_lease_changes_nothing(memory_bench):
    """What it returns is not stored, and it is told."""
    one = memory_bench()
    seen = []
    steps = Steps(one.executor, "Slow", [Slow], resources=seen)
    await steps.enqueue("a", Slow(4))
    async with one.planton(name="Slow", delay=60) as planton:
        planton.wake()
        await trio.sleep(1)
        sql = "SELECT id, token FROM planton_active"
        ((number, token),) = one.storage.connection.execute(sql)
        planton.pause("Slow")
        await one.storage.release(f"{number}.{token}")
        await trio.sleep(30)
    found = await one.record("a", "Slow")

    assert [1] == seen
    assert ("queued", 1) == (found.status, found.payload["Slow"]["Slow"]["number"])
    assert ["lost"] == [event.reason for event in one.seen.failed]


@attrs.frozen
class InThread(Step):
    text: str

    def step(self, context):
        context.resources.append((self.text, trio.lowlevel.in_trio_task()))
        return then(OnTrio(self.text + "!"))


@attrs.frozen
class OnTrio(Step):
    text: str

    async def step(self, context):
        context.resources.append((self.text, trio.lowlevel.in_trio_task()))
        return done(self.text) if self.text == "a!" else await trio.sleep_forever()


async def test_plain_steps_run_in_a_thread(bench):
    """They and async ones can follow each other, and what is broken off then is given back."""
    one = bench(grace=0.1)
    seen = []
    steps = Steps(one.executor, "Mixed", [InThread, OnTrio], resources=seen)
    await steps.enqueue("a", InThread("a"))
    async with one.planton(name="Mixed"):
        await one.seen.until(1)
        await steps.enqueue("b", InThread("b"))
        with trio.fail_after(10):
            while len(seen) < 4:
                await trio.sleep(0.01)

    assert [("a", False), ("a!", True), ("b", False), ("b!", True)] == seen
    assert "a!" == (await one.record("a", "Mixed")).result
    assert "queued" == (await one.record("b", "Mixed")).status


@attrs.frozen
class NoMethod(Step):
    """It has no `step`."""


@attrs.frozen
class NoContext(Step):
    async def step(self):
        """Does nothing."""


@attrs.frozen
class Generator(Step):
    def step(self, context):
        yield done()


@pytest.mark.parametrize("step", (NoMethod, NoContext, Generator))
def test_a_step_that_cannot_be_called_is_refused(step):
    """When it is given, not when there is work."""
    with pytest.raises(ValueError, match=step.__name__):
        Steps(Executor(MemoryStorage()), "Greeter", [step])


def test_steps_must_be_attrs_classes_of_their_own():
    """Said before anything runs."""

    class NotAttrs(SayHello):
        pass

    executor = Executor(MemoryStorage())
    for step in (NotAttrs, dict, SayHello("x"), None):
        with pytest.raises(ValueError, match="attrs"):
            Steps(executor, "Greeter", [step])
    Steps(executor, "Greeter", [SayHello])
    with pytest.raises(ValueError, match="a handler already"):
        Steps(executor, "Greeter", [SayHello])
    with pytest.raises(ValueError, match="step is 5"):
        then(5)
    with pytest.raises(ValueError, match="seconds is -1"):
        later(SayHello("x"), -1)


def test_a_step_is_stored_as_plain_json():
    """Which can be written by hand."""
    steps = Steps(Executor(MemoryStorage()), "Greeter", [ReadName, SayHello])
    state = steps.state(ReadName("name.txt"))

    assert '{"Greeter": {"ReadName": {"filename": "name.txt"}}}' == json.dumps(state)
    assert ReadName("name.txt") == steps.load(state)
    with pytest.raises(StateError, match="none of its steps: it has ReadName, SayHello"):
        steps.state(Wait(1, datetime.now()))


def test_fields_may_be_all_that_cattrs_knows():
    """Dates, paths, durations with a converter of one's own."""

    @attrs.frozen
    class Rich(Step):
        path: Path
        pause: timedelta

        async def step(self, context):
            return done()

    from cattrs.preconf.json import make_converter

    converter = make_converter()
    converter.register_unstructure_hook(timedelta, timedelta.total_seconds)
    converter.register_structure_hook(timedelta, lambda value, _: timedelta(seconds=value))
    steps = Steps(Executor(MemoryStorage()), "Rich", [Rich], converter=converter)
    step = Rich(Path("a"), timedelta(minutes=1))

    assert step == steps.load(json.loads(json.dumps(steps.state(step))))
