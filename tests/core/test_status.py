"""Where tasks stand, and why nothing was dispatched."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from planton import Batch, InstructionEvent, Planton, Task, TaskStatus, health


def status_of(one) -> TaskStatus:
    (status,) = one.planton.status()
    return status


async def test_status_of_a_task_that_waits(bench):
    """With aware times in UTC."""
    one = bench(["a"], concurrency=3, delay=60)
    async with one.planton:
        await trio.sleep(60.5)
        status = status_of(one)
    now = datetime.now(UTC)

    assert ("task", "waiting", 0, 1, 3, "advisory") == (
        status.name,
        status.state,
        status.attempt_number,
        status.active,
        status.concurrency,
        status.cap,
    )
    assert abs(now - status.last_attempt_at) < timedelta(seconds=5)
    assert abs(now + timedelta(seconds=59.5) - status.next_attempt_at) < timedelta(seconds=5)
    assert (None, 0, False) == (status.last_error, status.consecutive_errors, status.overdue)


def test_status_outside_of_trio(bench):
    """A plain method, also when nothing runs."""
    status = status_of(bench(concurrency=lambda: 1, cap="strict"))

    assert ("stopped", None, None, None, None, "strict") == (
        status.state,
        status.last_attempt_at,
        status.next_attempt_at,
        status.active,
        status.concurrency,
        status.cap,
    )


async def test_status_of_a_task_that_fails(bench):
    """The last error in words, and how often in a row."""
    one = bench(OSError("down"), OSError("still down"))
    await one.run_for(2.5)

    assert ("OSError: still down", 2, 2) == (
        status_of(one).last_error,
        status_of(one).consecutive_errors,
        status_of(one).attempt_number,
    )


async def test_errors_in_a_row_start_over_when_one_succeeds(bench):
    """The last error stays to be read."""
    one = bench(OSError("down"), [])
    await one.run_for(2.5)

    assert ("OSError: down", 0) == (status_of(one).last_error, status_of(one).consecutive_errors)


async def test_a_task_that_hangs_is_overdue(bench):
    """Status measures progress, not process life."""
    one = bench(lambda _: trio.sleep(60), delay=30)
    async with one.planton:
        await trio.sleep(35)

        assert ("attempting", False) == (status_of(one).state, status_of(one).overdue)
        await trio.sleep(10)

        assert ("attempting", True) == (status_of(one).state, status_of(one).overdue)
        assert status_of(one).next_attempt_at is None
        one.planton.pause("task")


async def test_a_task_with_a_long_delay_is_not_overdue(bench):
    """It waits as it should."""
    one = bench(delay=3600)
    async with one.planton:
        await trio.sleep(3000)

        assert not status_of(one).overdue
        one.planton.pause("task")
        await trio.sleep(3000)

        assert ("paused", False) == (status_of(one).state, status_of(one).overdue)


async def test_explain_says_why_nothing_was_dispatched(bench):
    """Each outcome in words, the newest last."""

    def delay(attempt_number):
        return 2.0**attempt_number

    capacities = iter([9, 9, 0, 9])
    one = bench(
        [],
        ["a", "b"],
        OSError("down"),
        delay=delay,
        concurrency=2,
        capacity=lambda: next(capacities),
    )
    one.active = ["x", "y"]
    async with one.planton:
        await trio.sleep(1.5)
        one.active = []
        await trio.sleep(2 + 4)
        one.active = ["a"]
        await trio.sleep(1 + 2)
    verdict, *words = one.planton.explain("task")

    assert "failed once: OSError: down" == verdict
    assert words[0].startswith("saturated: 2 of 2 active, attempt 1, next in 2 s (")
    assert words[1].startswith("nothing due, attempt 2, next in 4 s (")
    assert words[2].startswith("dispatched 2 of at most 2, next in 1 s (")
    assert words[3].startswith(
        "full: capacity returned 0, 1 of 2 active before, attempt 1, next in 2 s ("
    )
    assert words[4].startswith(
        "error: schedule: OSError: down, 1 of 2 active before, attempt 2, next in 4 s ("
    )


async def test_explain_folds_an_error_of_several_lines(bench):
    """Such as a database's, with a statement in it; and shortens it."""
    first = bench(OSError("near FORM:\n    SELECT 1\n    FORM x"))
    await first.run_for(1.5)
    second = bench(OSError("line\n" * 1000))
    await second.run_for(1.5)
    folded, shortened = (one.planton.explain("task")[1] for one in (first, second))

    assert folded.startswith(
        "error: schedule: OSError: near FORM: SELECT 1 FORM x, attempt 1, next"
    )
    assert "…, attempt 1, next in 1 s (" in shortened
    assert 200 < len(shortened) < 300


async def test_explain_says_that_a_delay_was_cut(bench):
    """Otherwise the seconds would be a riddle to whoever wrote the delay down."""
    one = bench(Batch(["a"], due_in=4), Batch([], due_in=40), delay=10, concurrency=2)
    await one.run_for(15)
    _, *words = one.planton.explain("task")

    assert words[0].startswith(
        "dispatched 1 of at most 2, next in 4 s, when something may be due ("
    )
    assert words[1].startswith("nothing due, attempt 1, next in 10 s (")


async def test_explain_tells_a_quiet_night_in_one_line(bench):
    """Equal decisions are counted."""
    one = bench()
    await one.run_for(100.5)
    verdict, line = one.planton.explain("task")

    assert "nothing due" == verdict
    assert line.startswith("nothing due, attempt 100, next in 1 s (")
    assert "100 times since" in line


async def test_explain_forgets_in_the_end(bench):
    """The last twenty are kept."""
    answers = [[], OSError("down")] * 30
    one = bench(*answers)
    await one.run_for(60.5)
    _, *decisions = one.planton.explain("task")

    assert 20 == len(decisions)


async def test_explain_sums_up_a_task_that_dispatches_and_looks_in_vain_by_turns(bench):
    """Milliseconds of chatter would push out what happened an hour ago."""
    one = bench(OSError("down"), *([["a"], [], ["b"], []] * 10), delay=0.1)
    await one.run_for(5.05)
    _, error, dispatched, nothing = one.planton.explain("task")

    assert error.startswith("error: schedule: OSError: down")
    assert dispatched.startswith("dispatched 1 of at most 1")
    assert "20 times since" in dispatched
    assert nothing.startswith("nothing due")
    assert "29 times since" in nothing


async def test_a_strict_task_says_how_many_it_counted(bench):
    """From the batch."""
    one = bench(Batch([], active=1), cap="strict")
    await one.run_for(1.5)

    assert one.planton.explain("task")[0].startswith("saturated: 1 of 1 active")


@pytest.mark.parametrize("count", (0, 1, 3))
def test_status_is_in_the_order_of_registration(count, script):
    """One for each task."""
    planton = Planton(
        tasks=[Task(name=str(i), schedule=script(), cap="strict") for i in range(count)]
    )
    planton.on(InstructionEvent, print)

    assert [str(i) for i in range(count)] == [status.name for status in planton.status()]


async def test_nothing_is_overdue_before_the_first_attempt_is_planned(script):
    """Nor has it a time yet, while services start; also in a second run."""
    told = []

    async def service(planton, *, task_status):
        await trio.sleep(3)
        (status,) = planton.status()
        told.append((status.state, status.next_attempt_at, bool(health(planton))))
        task_status.started()

    task = Task(name="task", schedule=script(), cap="strict")
    planton = Planton(tasks=[task], services=[service])
    for _ in range(2):
        await trio.sleep(3600)
        async with planton:
            await trio.sleep(5)

    assert [("waiting", None, True)] * 2 == told


async def test_nothing_is_overdue_while_it_drains(script):
    """No attempt is made any more, however long consumers and services take."""
    seen = []

    async def service(planton, *, task_status):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
            seen.extend(planton.status())

    task = Task(name="task", schedule=script(), cap="strict")
    paused = Task(name="paused", schedule=script(), cap="strict")
    planton = Planton(tasks=[task, paused], services=[service])
    async with planton:
        await trio.sleep(1)
        planton.pause("paused")
        planton.resume("paused")

    assert [(False, None)] * 2 == [(status.overdue, status.next_attempt_at) for status in seen]


async def test_a_delay_that_hangs_before_the_first_attempt_is_overdue(script):
    """It is as good as an attempt."""

    async def hang(attempt_number):
        await trio.sleep(20)
        return 1.0

    task = Task(name="task", schedule=script(), cap="strict", delay=hang)
    planton = Planton(tasks=[task])
    async with planton:
        await trio.sleep(12)

        assert not health(planton)
        planton.pause("task")
