"""The log of errors that nobody listens to, and of what an operator wants to find there."""

import logging
import time

import pytest
import trio

from planton import Batch, InstructionEvent, Planton, StorageError, Task
from planton._events import ErrorEvent
from planton._loop.log import ErrorLog


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the log believes in."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def error(text, *, task_name="task", stage="schedule", service=None, kind=StorageError):
    made = kind("db", text) if kind is StorageError else kind(text)
    return ErrorEvent(task_name=task_name, error=made, stage=stage, service=service)


def said(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_an_error_that_repeats_is_told_once_and_then_summed_up(caplog, clock):
    """A broker that is away for 50 s wrote 1,120 lines."""
    log = ErrorLog()
    for _ in range(500):
        log.add(error("connection refused"))
        clock[0] += 0.2

    assert [
        ("ERROR", "schedule of task 'task' failed: StorageError: db: connection refused"),
        (
            "WARNING",
            "schedule of task 'task' goes on failing, 300 times more in 60 s: "
            "StorageError: db: connection refused",
        ),
    ] == said(caplog)


@pytest.mark.parametrize(
    ("kind", "level", "is_traced"),
    (
        (StorageError, logging.INFO, False),
        (StorageError, logging.DEBUG, True),
        (ValueError, logging.INFO, True),
    ),
)
def test_an_error_of_plantons_own_is_one_line(caplog, clock, kind, level, is_traced):
    """Also one with a cause, whose words it has; all of it at DEBUG."""
    caplog.set_level(level, "planton")
    event = error("no such table", kind=kind)
    event.error.__cause__ = OSError("no such table")

    ErrorLog().add(event)

    assert is_traced == (caplog.records[0].exc_info is not None)


def test_errors_of_many_tasks_that_differ_in_names_and_numbers_only_are_one(caplog, clock):
    """They have one cause."""
    log = ErrorLog()
    for number in range(100):
        event = error(f"task 'task{number}' waited for {number}.5 s", task_name=f"task{number}")
        log.add(event)

    assert 1 == len(caplog.records)


@pytest.mark.parametrize(
    "other",
    (
        error("connection refused", stage="delay"),
        error("no such table"),
        error("connection refused", kind=OSError),
        error("connection refused", service="Storage.serve"),
    ),
)
def test_errors_of_another_kind_are_told_beside(caplog, clock, other):
    """At another stage, with another text, of another type or service."""
    log = ErrorLog()
    log.add(error("connection refused"))
    log.add(other)

    assert ["ERROR", "ERROR"] == [level for level, _ in said(caplog)]


def test_the_log_remembers_a_bounded_number_of_kinds(caplog, clock):
    """A text that differs each time fills no memory."""
    log = ErrorLog()
    for number in range(500):
        log.add(error("x" * number, kind=ValueError))

    assert 500 == len(caplog.records)
    assert 100 == len(log._kinds)


async def test_the_first_success_after_errors_is_in_the_log(bench, caplog):
    """With how many there were."""
    caplog.set_level(logging.INFO)
    one = bench(OSError("down"), OSError("down"), [], [], OSError("again"), ["a"])
    await one.run_for(6.5)
    works = [text for level, text in said(caplog) if "works again" in text]

    assert 2 == len(works)
    assert works[0].startswith("task 'task' works again, after it failed 2 times in a row in ")
    assert works[1].startswith("task 'task' works again, after it failed once in ")


async def test_neither_a_taken_lock_nor_a_stop_is_a_success(bench, caplog):
    """They say nothing of what failed."""
    caplog.set_level(logging.INFO)
    one = bench(OSError("down"), Batch([], outcome="locked"), OSError("down"), cap="strict")
    await one.run_for(2.5)

    assert 2 == one.planton.status()[0].consecutive_errors
    assert not [text for _, text in said(caplog) if "works again" in text]


async def test_pauses_are_in_the_log(bench, caplog):
    """Once each."""
    caplog.set_level(logging.INFO)
    one = bench()
    async with one.planton:
        for _ in range(2):
            one.planton.pause("task")
        for _ in range(2):
            one.planton.resume("task")

    assert [
        ("INFO", "task 'task' is paused in this process"),
        ("INFO", "task 'task' is resumed in this process"),
    ] == said(caplog)
    assert "task" == caplog.records[0].task_name


async def test_a_task_that_fails_for_a_minute_writes_few_lines(caplog):
    """One for all that have the same cause."""

    async def schedule(request):
        raise ConnectionError

    tasks = [Task(name=f"t{n}", schedule=schedule, cap="strict", delay=0.1) for n in range(20)]
    planton = Planton(tasks=tasks)
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(60)

    ((level, text),) = said(caplog)

    assert "ERROR" == level
    assert text.startswith("schedule of task 't")
    assert text.endswith("failed: ConnectionError")
