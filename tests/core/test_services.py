"""Services run beside the attempts."""

import itertools

import pytest
import trio

from planton import ErrorEvent, InstructionEvent, Planton, Task
from planton.testing import EventCollector


def strict(script, **options):
    return Task(name="task", schedule=script, cap="strict", **options)


def listening(**options):
    planton = Planton(**options)
    planton.on(InstructionEvent, print)
    return planton


async def test_services_are_ready_before_the_first_attempt(script):
    """And they are told whom they serve."""
    schedule = script()
    served = []

    async def service(planton, *, task_status):
        served.append(planton)
        await trio.sleep(3)
        task_status.started()
        await trio.sleep_forever()

    planton = listening(tasks=[strict(schedule)], services=[service])
    async with planton:
        assert 3 == trio.current_time()
        await trio.sleep(1.5)

    assert [planton] == served
    assert [4.0] == schedule.times


async def test_services_stop_after_the_drain(script):
    """A heartbeat must outlive the work."""
    order = []

    async def service(planton, *, task_status):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            order.append("service ended")

    async def slowly(_):
        await trio.sleep(3)
        order.append("attempt ended")
        return []

    planton = listening(tasks=[strict(script(slowly))], services=[service])
    async with planton:
        await trio.sleep(2)

    assert ["attempt ended", "service ended"] == order


async def test_a_service_that_fails_is_reported_and_started_again(script):
    """A listener that dies must not be silence."""
    starts = []

    async def service(planton, *, task_status):
        starts.append(trio.current_time())
        task_status.started()
        await trio.sleep(1)
        raise OSError("connection lost")

    planton = Planton(services=[service])
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(60)

    assert len(starts) > 3
    assert ["connection lost"] * len(seen.errors) == [str(error) for error in seen.errors]
    assert {(None, "service")} == {(event.task_name, event.stage) for event in seen.of(ErrorEvent)}


async def test_a_service_that_served_for_long_is_started_again_soon(script):
    """The break grows only while it fails again and again."""
    starts = []

    async def service(planton, *, task_status):
        starts.append(trio.current_time())
        task_status.started()
        await trio.sleep(100)
        raise OSError

    planton = Planton(services=[service])
    EventCollector(planton)
    async with planton:
        await trio.sleep(1000)

    assert max(b - a for a, b in itertools.pairwise(starts)) <= 102


async def test_a_service_that_fails_to_start_does_not_keep_work_from_being_dispatched(script):
    """It is reported."""
    schedule = script()

    async def service(planton, *, task_status):
        raise OSError("no")

    planton = listening(tasks=[strict(schedule)], services=[service])
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(1.5)

    assert [1.0] == schedule.times
    assert "no" == str(seen.errors[0])


@pytest.mark.parametrize("is_class", (False, True))
async def test_a_service_that_never_says_that_it_is_ready_is_reported(script, is_class):
    """Attempts begin without it."""
    schedule = script()

    class Service:
        async def __call__(self, planton, *, task_status):
            await trio.sleep_forever()

    async def service(planton, *, task_status):
        await trio.sleep_forever()

    planton = listening(tasks=[strict(schedule)], services=[Service() if is_class else service])
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(1.5)

    assert [6.0] == schedule.times
    assert "started" in str(seen.errors[0])


async def test_a_service_may_end(script):
    """One that has done its work is not started again."""
    starts = []

    async def service(planton, *, task_status):
        starts.append(1)
        task_status.started()

    async with Planton(services=[service]):
        await trio.sleep(100)

    assert [1] == starts


async def test_a_stop_does_not_wait_for_a_service_to_start(script):
    """It gives up on it."""

    async def service(planton, *, task_status):
        await trio.sleep(3)
        task_status.started()

    planton = Planton(services=[service])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planton.run)
        await trio.sleep(1)
        await planton.terminate()

    assert 1 == trio.current_time()


async def test_a_service_may_terminate_wake_and_register(script):
    """It has the whole Planton, even before attempts begin."""
    schedule = script()

    async def service(planton, *, task_status):
        planton.register(strict(schedule, delay=10))
        planton.wake("task")
        task_status.started()
        await trio.sleep(5)
        await planton.terminate()

    await listening(services=[service]).run()

    assert [0.0] == schedule.times
    assert 5 == trio.current_time()


async def test_a_service_may_unregister_before_attempts_begin(script):
    """There is nothing to dismiss yet."""
    schedule = script()

    async def service(planton, *, task_status):
        planton.unregister("task")
        task_status.started()

    planton = listening(tasks=[strict(schedule)], services=[service])
    async with planton:
        await trio.sleep(5)

    assert [] == schedule.times


async def test_a_service_that_goes_on_reports_its_errors(script):
    """As one that fails, but for the new start."""
    schedule = script()

    async def service(planton, *, task_status):
        task_status.started()
        await planton.report(OSError("for once"))
        await trio.sleep_forever()

    planton = listening(tasks=[strict(schedule)], services=[service])
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(100.5)
    with pytest.raises(ValueError, match="error"):
        await planton.report("no exception")

    assert [("for once", None, "service")] == [
        (str(event.error), event.task_name, event.stage) for event in seen.of(ErrorEvent)
    ]


class Broken:
    async def serve(self, planton, *, task_status):
        raise OSError("down")


class Derived(Broken):
    pass


async def test_the_service_that_failed_is_named(script, caplog):
    """In the event and in the log; what it reports itself likewise, also from a nursery of its."""

    async def reporting(planton, *, task_status):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(planton.report, OSError("for once"))
            task_status.started()

    planton = listening(tasks=[strict(script())], services=[Derived().serve, reporting])
    async with planton:
        await trio.sleep(0.5)
    await planton.report(OSError("of nobody"))

    expected = {
        "service Derived.serve failed: OSError: down",
        "service failed: OSError: of nobody",
    }
    said = {record.message for record in caplog.records}
    assert expected < said
    (own,) = said - expected
    assert own.endswith("reporting failed: OSError: for once")
    assert own.startswith("service test_the_service")
    assert {"Derived.serve", reporting.__qualname__, None} == {
        record.service for record in caplog.records
    }
