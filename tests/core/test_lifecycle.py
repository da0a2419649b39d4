"""Running, stopping, and changing tasks in between."""

import asyncio
import signal

import pytest
import trio

from planton import (
    AlreadyRunningError,
    AttemptEvent,
    DuplicateTaskNameError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    Task,
    UnknownTaskError,
)
from planton.testing import EventCollector


async def test_a_second_run_at_the_same_time_is_refused(bench):
    """One loop is enough."""
    one = bench()
    async with one.planton:
        with pytest.raises(AlreadyRunningError):
            await one.planton.run()
        with pytest.raises(AlreadyRunningError):
            async with one.planton:
                pass  # pragma: no cover


async def test_it_may_run_again_after_it_has_ended(bench):
    """With attempt numbers that start over."""
    one = bench()
    await one.run_for(2.5)
    await one.run_for(1.5)

    assert [0, 1, 0] == [request.attempt_number for request in one.schedule.requests]


async def test_run_is_started_when_attempts_begin(bench):
    """`nursery.start(planton.run)` waits for that."""
    one = bench(delay=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        await one.planton.terminate()

    assert one.schedule.times


async def test_run_returns_when_terminated_from_elsewhere(bench):
    """Terminate may be called from several trio tasks, more than once, and at rest."""
    one = bench(lambda _: trio.sleep(3))
    await one.planton.terminate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.planton.run)
        await trio.sleep(2)
        for _ in range(3):
            nursery.start_soon(one.planton.terminate)
    await one.planton.terminate()


async def test_terminate_returns_within_grace_whatever_hangs(bench):
    """Even a callback that refuses to be cancelled cannot keep it."""

    async def stubborn(_):
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    one = bench(stubborn, grace=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(2)
        await one.planton.terminate()

        assert 7 == trio.current_time()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("grace", (0, 0.0))
async def test_a_grace_of_zero_stops_at_once(bench, grace):
    """Whoever wants no drain gets none."""
    one = bench(lambda _: trio.sleep(100), grace=grace)
    await one.run_for(2)

    assert 2 == trio.current_time()


async def test_a_listener_may_terminate(bench):
    """It asks for the stop; the drain goes on when it has returned."""
    one = bench(["a", "b"], ["never"], concurrency=2)

    @one.planton.on(InstructionEvent)
    async def stop(event):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.planton.terminate)

    await one.planton.run()

    assert 1 == trio.current_time()
    assert ["a", "b"] == one.seen.instructions


async def test_an_exception_of_the_block_leaves_as_it_is(bench):
    """Not wrapped in a group by the nursery in between."""
    one = bench()
    with pytest.raises(ValueError, match="mine"):
        async with one.planton:
            raise ValueError("mine")


async def test_a_cancellation_of_the_block_drains(bench):
    """What was claimed is delivered before the cancellation takes effect."""

    async def slowly(_):
        await trio.sleep(5)
        return ["late"]

    one = bench(slowly)
    with trio.move_on_after(2) as scope:
        async with one.planton:
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert 6 == trio.current_time()
    assert ["late"] == one.seen.instructions


def test_ctrl_c_drains_and_leaves_as_keyboard_interrupt(bench):
    """Also when run is the main trio task; claimed work is handed over first."""

    async def interrupt_and_claim(_):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(0.01)
        return ["late"]

    one = bench(interrupt_and_claim, delay=0)
    with pytest.raises(KeyboardInterrupt):
        trio.run(one.planton.run)

    assert ["late"] == one.seen.instructions


def test_a_second_ctrl_c_does_not_wait_for_the_drain(bench):
    """Who presses it twice means it."""

    async def hang(_):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(1000)

    one = bench(hang, delay=0, grace=1000)
    with pytest.raises(KeyboardInterrupt):
        trio.run(one.planton.run)

    assert "terminate" == one.seen.of(ErrorEvent)[0].stage


# Tasks that come and go


async def test_a_task_can_be_registered_while_running(bench, script):
    """Its first attempt follows after its delay."""
    one, schedule = bench(), script(["new"])
    async with one.planton:
        await trio.sleep(5)
        one.planton.register(Task(name="new", schedule=schedule, cap="strict"))
        await trio.sleep(1.5)

    assert [6.0] == schedule.times


async def test_registering_a_name_twice_changes_nothing(bench, script):
    """The one that was there stays."""
    one = bench()
    with pytest.raises(DuplicateTaskNameError):
        one.planton.register(Task(name="task", schedule=script()))
    with pytest.raises(InvalidArgumentError, match=r"planton\.Task"):
        one.planton.register("task")
    await one.run_for(1.5)

    assert 1 == len(one.schedule.times)


async def test_unregister_lets_the_attempt_in_hand_finish(bench):
    """What it claims is delivered; there is no further attempt."""

    async def slowly(_):
        await trio.sleep(2)
        return ["last"]

    one = bench(slowly, ["never"])
    async with one.planton:
        await trio.sleep(2)
        one.planton.unregister("task")

        assert [] == one.planton.status()
        await trio.sleep(5)

    assert ["last"] == one.seen.instructions


async def test_an_unregistered_task_delivers_what_it_kept(bench):
    """Nothing that was claimed is dropped."""
    one = bench(["a", "b", "c"])
    async with one.planton:
        await trio.sleep(1.5)
        one.planton.unregister("task")
        await trio.sleep(5)

    assert ["a", "b", "c"] == one.seen.instructions
    assert 1 == len(one.schedule.requests)


async def test_a_name_that_is_registered_again_waits_for_the_attempt_in_hand(bench, script):
    """Two attempts of one name at the same time could exceed the cap."""

    async def slowly(_):
        await trio.sleep(5)
        return ["old"]

    one, schedule = bench(slowly), script(["new"])
    async with one.planton:
        await trio.sleep(2)
        one.planton.unregister("task")
        one.planton.register(
            Task(
                name="task", schedule=schedule, get_active_instructions=one.get_active_instructions
            )
        )
        await trio.sleep(10)

    assert 7.0 == schedule.times[0]
    assert ["old", "new"] == one.seen.instructions


async def test_unregistered_before_the_run_is_gone(bench):
    """Also when nothing runs."""
    one = bench()
    one.planton.unregister("task")
    await one.run_for(2)

    assert [] == one.schedule.times


async def test_a_paused_task_makes_no_attempts(bench):
    """Resume attempts at once and goes on."""
    one = bench()
    async with one.planton:
        await trio.sleep(1.5)
        one.planton.pause("task")
        one.planton.pause("task")
        one.planton.wake("task")
        await trio.sleep(5)

        assert 1 == len(one.schedule.times)
        assert "paused" in one.planton.explain("task")[-1]
        one.planton.resume("task")
        one.planton.resume("task")
        await trio.sleep(1.25)

    assert [1.0, 6.5, 7.5] == one.schedule.times


async def test_a_pause_during_an_attempt_lets_it_finish(bench):
    """And resuming during it makes the next follow at once."""

    async def slowly(_):
        await trio.sleep(3)
        return ["a"]

    one = bench(slowly)
    async with one.planton:
        await trio.sleep(2)
        one.planton.pause("task")
        await trio.sleep(1)
        one.planton.resume("task")
        await trio.sleep(1.5)

    assert [1.0, 4.0] == one.schedule.times


async def test_paused_before_the_run_stays_paused(bench):
    """Until resumed."""
    one = bench()
    one.planton.pause("task")
    await one.run_for(5)
    one.planton.resume("task")
    await one.run_for(0.5)

    assert [5.0] == one.schedule.times


async def test_a_pause_while_the_delay_is_computed_counts(bench):
    """There is no window in which a pause is forgotten."""

    async def delay(attempt_number):
        await trio.sleep(1)
        return 1.0

    one = bench(delay=delay)
    async with one.planton:
        await trio.sleep(2.5)
        one.planton.pause("task")
        await trio.sleep(5)

    assert [2.0] == one.schedule.times


@pytest.mark.parametrize("method", ("unregister", "pause", "resume", "wake", "explain"))
def test_an_unknown_name_is_an_error_that_tells_the_known_ones(method, bench):
    """A typo is found at once."""
    with pytest.raises(UnknownTaskError, match=r"tusk.*task") as caught:
        getattr(bench().planton, method)("tusk")

    assert ("tusk", ("task",)) == (caught.value.task_name, caught.value.known)


# One attempt by hand


async def test_attempt_makes_one_attempt_without_running(bench):
    """Without the delay; what it tells is the event that listeners got."""
    one = bench(["a"])
    event = await one.planton.attempt("task")

    assert 0 == trio.current_time()
    assert ("dispatched", 1) == (event.outcome, event.claimed)
    assert [event] == one.seen.of(AttemptEvent)


async def test_attempt_keeps_the_surplus_for_the_next(bench):
    """Also when nothing runs in between."""
    one = bench(["a", "b"])
    await one.planton.attempt("task")
    event = await one.planton.attempt("task")

    assert ["a", "b"] == one.seen.instructions
    assert "dispatched" == event.outcome


async def test_attempt_while_running_is_in_addition(bench):
    """The next regular attempt follows after the delay."""
    one = bench(delay=10)
    async with one.planton:
        await trio.sleep(1)
        event = await one.planton.attempt("task")
        await trio.sleep(11)

    assert "nothing" == event.outcome
    assert [1.0, 11.0] == one.schedule.times


async def test_attempt_waits_for_the_attempt_in_hand(bench):
    """Two attempts of a task are never made at the same time."""

    async def slowly(_):
        await trio.sleep(3)
        return ["first"]

    one = bench(slowly, ["second"], concurrency=5)
    async with one.planton:
        await trio.sleep(2)
        event = await one.planton.attempt("task")

        assert 4 == trio.current_time()
    assert 1 == event.claimed
    assert ["first", "second"] == one.seen.instructions


async def test_attempt_of_an_unknown_task_is_an_error(bench):
    """Like everywhere."""
    with pytest.raises(UnknownTaskError):
        await bench().planton.attempt("tusk")


async def test_attempt_by_the_attempt_itself_is_refused(bench):
    """It would wait for itself."""
    one = bench(["a"])
    errors = []

    @one.planton.on(InstructionEvent)
    async def again(event):
        try:
            await one.planton.attempt("task")
        except AlreadyRunningError as error:
            errors.append(error)

    await one.run_for(1.5)

    assert "wake" in str(errors[0])


async def test_attempt_that_is_cancelled_delivers_first(bench):
    """The same promise as run makes."""

    async def slowly(_):
        await trio.sleep(3)
        return ["late"]

    one = bench(slowly)
    with trio.move_on_after(1) as scope:
        await one.planton.attempt("task")

    assert scope.cancelled_caught
    assert ["late"] == one.seen.instructions


async def test_attempt_that_is_cut_off_by_the_end_of_the_run_says_so(bench):
    """Grace was over."""
    one = bench(lambda _: trio.sleep(100), grace=2)
    events = []

    async def attempt():
        events.append(await one.planton.attempt("task"))

    async with trio.open_nursery() as nursery:
        async with one.planton:
            nursery.start_soon(attempt)
            await trio.sleep(0.5)

    assert ["stopping"] == [event.outcome for event in events]


async def test_attempt_during_the_drain_follows_the_run(bench):
    """It waits for the end of the run and is made by itself."""

    async def slowly(_):
        await trio.sleep(3)
        return []

    one = bench(slowly, ["after"])
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(2)
        nursery.start_soon(one.planton.terminate)
        await trio.sleep(0.5)
        event = await one.planton.attempt("task")

    assert ("dispatched", 4) == (event.outcome, trio.current_time())


async def test_attempt_that_waits_when_the_run_is_stopped_follows_the_run(bench):
    """The nursery of the run is closed by then."""

    async def slowly(_):
        await trio.sleep(3)
        return []

    one = bench(slowly, ["after"])
    events = []

    async def attempt():
        events.append(await one.planton.attempt("task"))

    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(2)
        nursery.start_soon(attempt)
        await trio.sleep(0.5)
        await one.planton.terminate()

    assert [("dispatched", 1)] == [(event.outcome, event.claimed) for event in events]
    assert [1.0, 4.0] == one.schedule.times


async def test_attempt_while_services_start_is_made_by_itself(script):
    """A service may need one in order to start."""
    outcomes = []

    async def service(planton, *, task_status):
        outcomes.append((await planton.attempt("task")).outcome)
        task_status.started()

    schedule = script(["a"])
    planton = Planton(
        tasks=[Task(name="task", schedule=schedule, cap="strict")], services=[service]
    )
    EventCollector(planton)
    async with planton:
        await trio.sleep(1.5)

    assert ["dispatched"] == outcomes
    assert [0.0, 1.0] == schedule.times


async def test_a_run_that_begins_during_an_attempt_by_hand_waits_for_it(bench):
    """Never two attempts of one task at the same time."""

    async def slowly(_):
        await trio.sleep(5)
        return ["by hand"]

    one = bench(slowly, ["run"], concurrency=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.planton.attempt, "task")
        await trio.sleep(1)
        async with one.planton:
            await trio.sleep(6)

    assert [0.0, 6.0] == one.schedule.times


@pytest.mark.parametrize(
    ("argument", "value"),
    (
        ("grace", -1),
        ("grace", True),
        ("services", [5]),
        ("services", print),
        ("tasks", Task(name="task", schedule=print)),
        ("get_active_instructions", "x"),
    ),
)
def test_an_argument_that_cannot_be_used_is_refused(argument, value):
    """The error names it."""
    with pytest.raises(InvalidArgumentError, match=argument):
        Planton(**{argument: value})


async def test_nothing_to_do_runs_until_terminated():
    """A Planton without tasks is legal: they may come later."""
    planton = Planton()
    EventCollector(planton)
    async with planton:
        await trio.sleep(1)


def test_in_another_event_loop_it_says_where_it_runs():
    """Instead of an error from the depths of trio."""

    async def program():
        with pytest.raises(RuntimeError, match="runs on trio"):
            await Planton().run()
        with pytest.raises(RuntimeError, match="runs on trio"):
            async with Planton():
                pass  # pragma: no cover

    asyncio.run(program())


async def test_a_signal_after_the_end_changes_nothing(bench):
    """The command line asks for a stop whenever a signal comes."""
    one = bench(["a"])
    one.planton.request_stop()
    one.planton.abort()
    await one.run_for(1.5)

    assert ["a"] == one.seen.instructions
