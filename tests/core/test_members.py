"""What storages, probes and programs use of a Planton, and that it ends whatever hangs."""

import os

import pytest
import trio

from planton import (
    ErrorEvent,
    InstructionEvent,
    Planton,
    PlantonError,
    Task,
    UnknownTaskError,
    health,
)
from planton.testing import EventCollector


def tasks_of(schedule, *names, **options):
    options = {"cap": "strict", "delay": 1.0, **options}
    return [Task(name=name, schedule=schedule, **options) for name in names]


async def test_names_and_status_are_in_the_order_of_registration(script):
    """Or in that of the names that are asked for."""
    planton = Planton(tasks=tasks_of(script(), "b", "a", "c"))

    assert ["b", "a", "c"] == planton.names() == [each.name for each in planton.status()]
    assert ["c", "b"] == [each.name for each in planton.status(["c", "b"])]
    with pytest.raises(UnknownTaskError):
        planton.status(["d"])


async def test_is_running_from_the_start_to_the_end_of_the_drain(bench):
    """The drain is a part of it."""
    one = bench(lambda request: trio.sleep(5), delay=0.5)
    async with trio.open_nursery() as nursery:
        assert not one.planton.is_running
        await nursery.start(one.planton.run)
        await trio.sleep(1)
        assert one.planton.is_running
        one.planton.request_stop()
        await trio.sleep(1)

        assert one.planton.is_running
    assert not one.planton.is_running
    one.planton.request_stop()
    one.planton.abort()


async def test_abort_ends_without_draining(bench):
    """What is undelivered is reported."""
    one = bench(lambda request: trio.sleep(5), delay=0.5)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(1)
        one.planton.abort()

    assert 1 == trio.current_time()
    assert ["terminate"] == [event.stage for event in one.seen.of(ErrorEvent)]


async def test_decisions_count_what_is_new(bench):
    """An attempt that only looked again in vain is not."""
    one = bench([], [], ["a"], OSError("down"), OSError("down"))
    counts = []
    async with one.planton:
        for _ in range(6):
            await trio.sleep(1)
            counts.append(one.planton.status()[0].decisions)

    assert [0, 1, 1, 2, 3, 4] == counts


@pytest.mark.parametrize("method", ("run", "terminate", "attempt", "wake", "status", "register"))
async def test_in_a_process_that_was_forked_while_it_runs_there_is_an_error(
    method, bench, monkeypatch
):
    """Its trio was not copied, so all else would hang."""
    one = bench()
    calls = {"attempt": ["task"], "register": tasks_of(one.schedule, "other")}
    async with one.planton:
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        with pytest.raises(PlantonError, match="forked from: make one in this process"):
            value = getattr(one.planton, method)(*calls.get(method, ()))
            await value
        monkeypatch.undo()

    assert ["task"] == one.planton.names()


class Hanging:
    """A storage, a consumer and a service that only their cancellation ends."""

    def __init__(self):
        self.is_open = False

    async def __aenter__(self):
        self.is_open = True

    async def __aexit__(self, *exc):
        await trio.sleep_forever()

    async def serve(self, planton, *, task_status):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            await trio.sleep(1000)


async def test_run_ends_within_its_grace_whatever_hangs(bench):
    """A closing storage, a service, a callback, a listener."""
    hanging = Hanging()
    one = bench(["a"], lambda request: trio.sleep_forever(), storages=[hanging], grace=5)
    one.planton.on(InstructionEvent, lambda event: trio.sleep_forever())
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(2)
        await one.planton.terminate()

    assert 7 == trio.current_time()


async def test_what_ignores_its_cancellation_is_named(bench, caplog):
    """Nothing can end it from outside; terminate returns all the same."""

    class Stubborn:
        async def serve(self, planton, *, task_status):
            task_status.started()
            with trio.CancelScope(shield=True):
                await trio.sleep(30)

    one = bench(services=[Stubborn().serve], grace=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(1)
        await one.planton.terminate()

        assert 6 == trio.current_time()
    (record,) = caplog.records

    assert 30 == trio.current_time()
    assert (
        "the grace period ended 5 s ago; these ignore that they are cancelled: Stubborn.serve"
        == record.getMessage()
    )


async def test_health_warns_of_a_task_that_is_stuck(bench):
    """Its slots are taken, and none of them ever frees up."""
    one = bench()
    one.active = ["gone"]
    async with one.planton:
        await trio.sleep(700)
        (warning,) = health(one.planton).warnings

    assert warning.startswith("task 'task' is stuck: 1 of 1 active for 699 s")


async def test_health_does_not_blame_the_set_up_when_the_database_is_away(bench):
    """It was right until then."""

    class Schedule:
        wake_ups = "polling"

        async def __call__(self, request):
            raise OSError("connection refused")

    one = bench(schedule=Schedule())
    async with one.planton:
        await trio.sleep(5)
        warnings = health(one.planton).warnings

    assert "wake-ups are down or turned off, and polled are 'task'" == warnings[-1]


async def test_a_storage_is_a_part_of_every_run():
    """One Planton may run again and again."""
    opened = []

    class Storage:
        is_open = False

        async def __aenter__(self):
            opened.append("opens")

        async def __aexit__(self, *exc):
            opened.append("closes")

        async def serve(self, planton, *, task_status):
            task_status.started()

    planton = Planton(storages=[Storage()])
    EventCollector(planton)
    for _ in range(2):
        async with planton:
            pass

    assert ["opens", "closes"] * 2 == opened
