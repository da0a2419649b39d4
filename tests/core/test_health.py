"""Health measures progress, not process life."""

import pytest
import trio

from planton import Health, InstructionEvent, Planton, Task, health


async def test_a_planton_that_runs_and_waits_is_healthy(bench):
    """Also in a long delay, and while it drains."""
    one = bench(lambda _: trio.sleep(8), delay=3600)
    async with one.planton:
        await trio.sleep(3000)

        assert Health(ok=True) == health(one.planton)
        await trio.sleep(605)
        one.planton.request_stop()
        await trio.sleep(1)

        assert health(one.planton)


async def test_a_planton_that_does_not_run_is_not_healthy(bench):
    """Before and after."""
    one = bench()

    assert Health(ok=False, reasons=("Planton does not run",)) == health(one.planton)
    assert not health(one.planton)
    await one.run_for(1)

    assert not health(one.planton)


async def test_a_callback_that_hangs_is_not_healthy(bench):
    """Though the process lives."""
    one = bench(lambda _: trio.sleep(60))
    async with one.planton:
        await trio.sleep(12)

        (reason,) = health(one.planton).reasons

        assert reason.startswith("task 'task' is overdue: a callback hangs, or a consumer")
        one.planton.pause("task")


async def test_a_consumer_that_takes_nothing_is_not_healthy(bench):
    """The same."""
    one = bench(["a"])
    one.planton.on(InstructionEvent, lambda _: trio.sleep(30))
    async with one.planton:
        await trio.sleep(12)

        assert not health(one.planton)


async def test_a_loop_that_was_blocked_is_not_healthy(bench):
    """Its tasks should have been attempted long ago, and nobody got to it."""
    one = bench()
    async with one.planton:
        await trio.sleep(0.5)
        clock = trio.lowlevel.current_clock()
        clock.jump(60)

        assert ("task 'task' is overdue: the loop was blocked",) == health(one.planton).reasons


async def test_a_task_that_fails_again_and_again_is_a_warning(bench):
    """A new start would not bring the database back."""
    one = bench(*[OSError("down")] * 9)
    async with one.planton:
        await trio.sleep(2.5)

        assert Health(ok=True) == health(one.planton)
        await trio.sleep(1)

        assert (
            True,
            ("task 'task' failed 3 times in a row, the last time with OSError: down",),
        ) == (health(one.planton).ok, health(one.planton).warnings)


@pytest.mark.parametrize(
    ("said", "shown"), (("live", "live"), ("polling", "polling"), ("?", None), (None, None))
)
def test_status_shows_what_a_schedule_says_of_its_wake_ups(said, shown, script):
    """As it is at that moment."""
    schedule = script()
    planton = Planton(tasks=[Task(name="task", schedule=schedule, cap="strict")])

    assert planton.status()[0].wake_ups is None
    schedule.wake_ups = said

    assert shown == planton.status()[0].wake_ups


@pytest.mark.parametrize(
    ("count", "names"), ((1, "'0'"), (3, "'0', '1', '2'"), (5, "'0', '1', '2' and 2 more"))
)
def test_wake_ups_that_are_down_are_a_warning(script, count, names):
    """One for all tasks; polling goes on."""
    schedule = script()
    schedule.wake_ups = "polling"
    tasks = [Task(name=str(number), schedule=schedule, cap="strict") for number in range(count)]
    planton = Planton(tasks=tasks)
    planton.on(InstructionEvent, print)
    warnings = health(planton).warnings

    (warning,) = warnings

    assert warning.startswith(f"wake-ups are down or turned off, and polled are {names}: they need")
    assert "Planton(storages=[storage])" in warning


class Worried:
    """A consumer that says what is wrong with its work."""

    def __init__(self, worry):
        self.worry = worry

    def capacity(self, task_name):
        return 1

    async def submit(self, event):
        """Take it."""

    def failing(self, task_name):
        if isinstance(self.worry, BaseException):
            raise self.worry
        return self.worry


@pytest.mark.parametrize(
    ("worry", "warnings"),
    (
        (None, ()),
        (17, ()),
        ("all is lost", ("task 'task': all is lost",)),
        (ValueError("x"), ("task 'task': its consumer does not say: ValueError: x",)),
        (
            SystemExit(3),
            (
                "task 'task': its consumer does not say: "
                "PlantonError: SystemExit: 3 was raised, and failed nothing but this call",
            ),
        ),
    ),
)
async def test_what_a_consumer_says_of_its_work_is_a_warning(worry, warnings):
    """A new start would not mend it."""
    task = Task(name="task", schedule=lambda request: [], cap="strict", delay=1)
    async with Planton(tasks=[task], consumers=[Worried(worry)]) as planton:
        await trio.sleep(2)
        found, (status,) = health(planton), planton.status()

    assert Health(ok=True, warnings=warnings) == found
    assert (status.failing is None) == (not warnings)
