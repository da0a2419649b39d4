"""What an executor does with instructions, on each storage."""

import pickle
import threading

import pytest
import trio

from planton import CallbackTimeoutError, ErrorEvent, InstructionEvent, Planton, health
from planton.testing import EventCollector
from planton_executor import GiveUp, NoHandlerError, TryAgain


async def test_what_a_handler_returns_is_the_result(bench):
    """Of an async one as of a sync one, which runs in a thread of its own."""
    one = bench()
    threads = []

    @one.executor.handler("task")
    async def handle(work):
        return {"got": work.payload, "delivery": work.delivery}

    @one.executor.handler("other")
    def handle_in_thread(work):
        threads.append(threading.get_ident())
        return [work.instruction, work.task_name]

    await one.enqueue("a", payload=[1])
    await one.enqueue("b", name="other")
    planton = one.planton()
    planton.register(one.storage.queue_task("other", delay=0.02))
    async with planton:
        await one.seen.until(2)

    assert {"got": [1], "delivery": 1} == (await one.record()).result
    assert ["b", "other"] == (await one.record("b", "other")).result
    assert threading.get_ident() not in threads
    assert {"started a", "succeeded a", "started b", "succeeded b", "idle"} == set(one.seen.words)


async def test_a_plain_function_may_give_a_coroutine(bench):
    """Such as a lambda around an async function; it runs on trio."""
    one = bench()

    async def work_at(work, place):
        assert trio.lowlevel.in_trio_task()
        return [work.instruction, place]

    one.executor.handler("task")(lambda work: work_at(work, "here"))
    await one.enqueue("a")
    async with one.planton():
        await one.seen.until(1)

    assert ["a", "here"] == (await one.record()).result


async def test_no_more_run_than_the_concurrency(bench):
    """And no more are claimed than can start; all are done in the end."""
    one = bench(concurrency=3)
    running, most, claimed = 0, 0, []

    @one.executor.handler("task")
    async def handle(work):
        nonlocal running, most
        running += 1
        most = max(most, running)
        claimed.append(len(await one.storage.get_active_instructions("task")))
        await trio.sleep(0.01)
        running -= 1

    await one.enqueue(*map(str, range(12)))
    async with one.planton(delay=60) as planton:
        planton.wake()
        await one.seen.until(12)

    assert 3 == most
    assert 3 >= max(claimed)
    assert "idle" == one.seen.words[-1]


async def test_it_may_be_wired_by_hand(bench):
    """By a listener, a capacity and a service."""
    one = bench(concurrency=3)
    most = []

    @one.executor.handler("task")
    async def handle(work):
        most.append(len(await one.storage.get_active_instructions("task")))

    await one.enqueue(*map(str, range(12)))
    async with one.planton_by_hand(delay=60) as planton:
        planton.wake()
        await one.seen.until(12)

    assert 3 >= max(most)


async def test_a_failure_is_tried_again_by_what_the_instruction_brought(bench):
    """`enqueue(retries=…)`; then it is dead, with the error."""
    one = bench()

    @one.executor.handler("task")
    async def handle(work):
        raise ValueError(f"no such user, delivery {work.delivery}")

    await one.enqueue("a", retries=2)
    async with one.planton():
        await one.seen.until(3)
    found = await one.record()

    assert ("dead", "ValueError: no such user, delivery 3") == (found.status, found.error)
    assert ["error"] * 3 == [event.reason for event in one.seen.failed]


async def test_many_failures_in_a_row_are_a_warning(memory_bench):
    """Of one task, until one succeeds; that a claim was lost is no failure."""
    one = memory_bench(concurrency=1)

    @one.executor.handler("task")
    async def handle(work):
        if work.instruction != "good":
            raise GiveUp("no disk")

    for number in range(10):
        await one.enqueue(str(number))
    async with one.planton() as planton:
        await one.seen.until(9)
        before = planton.status()[0].failing
        await one.seen.until(10)
        then, warnings = planton.status()[0].failing, health(planton).warnings
        await one.enqueue("good")
        await one.seen.until(11)
        after = planton.status()[0].failing

    problem = "the last 10 instructions failed, the last of them with GiveUp: no disk"
    assert (None, problem, None) == (before, then, after)
    assert f"task 'task': {problem}" in warnings


async def test_a_handler_may_give_up(bench):
    """Another try would not help."""
    one = bench()

    @one.executor.handler("task")
    async def handle(work):
        raise GiveUp("no such user")

    await one.enqueue("a", retries=2)
    async with one.planton():
        await one.seen.until(1)
    found = await one.record()

    assert ("failed", "no such user", 2) == (found.status, found.error, found.retries)


async def test_nothing_is_claimed_for_a_task_without_a_handler(bench):
    """Where the executor is a consumer, which says for which tasks it has room."""
    one = bench(concurrency=3)

    @one.executor.handler("known")
    async def handle(work):
        pass

    assert [None, 3] == [one.executor.capacity(name) for name in ("task", "known")]


async def test_work_without_a_handler_is_given_back(bench):
    """By Planton, with pauses: a misspelt handler fails nothing."""
    one = bench()
    one.executor.handler("known")(print)
    await one.enqueue("a")
    planton = one.planton_by_hand()
    seen = EventCollector(planton)
    async with planton:
        with trio.fail_after(10):
            while not seen.errors:
                await trio.sleep(0.01)
    found = await one.record()
    error = seen.errors[0]

    assert ("queued", None) == (found.status, found.error)
    assert isinstance(error, NoHandlerError)
    assert "no handler for this task, but for 'known'" in str(error)


async def test_a_foreign_event_without_a_handler_is_tried_again_and_told_once(memory_bench):
    """Later, as a broker would bring it back at once."""
    one = memory_bench()
    errors = []
    one.executor.on(ErrorEvent, errors.append)
    await one.enqueue("a", "b")
    async with one.executor:
        for event in await one.claim():
            await one.executor.submit(InstructionEvent.from_json(event.to_json()))

    found = [await one.record(name) for name in "ab"]

    assert ["queued", "queued"] == [each.status for each in found]
    assert all("no handler for this task" in each.error for each in found)
    assert (await one.claim()) == []
    assert [NoHandlerError] == [type(event.error) for event in errors]


async def test_a_foreign_event_without_a_handler_does_not_hang_when_the_executor_ends(memory_bench):
    """The storage is away, and nobody can store that later: it is left to its lease."""
    one = memory_bench()
    (event,) = await one.claim("a")
    one.storage.connection.execute("ALTER TABLE planton_active RENAME TO gone")
    async with trio.open_nursery() as nursery:
        async with one.executor:
            nursery.start_soon(one.executor.submit, InstructionEvent.from_json(event.to_json()))
            await trio.sleep(0.1)

    one.storage.connection.execute("ALTER TABLE gone RENAME TO planton_active")

    assert 2 == trio.current_time()
    assert "running" == (await one.record()).status


async def test_a_result_that_is_not_json_is_told(bench):
    """The work is done, and is not to be done again."""
    one = bench()

    @one.executor.handler("task")
    async def handle(work):
        return {1, 2}

    await one.enqueue("a", retries=2)
    async with one.planton():
        await one.seen.until(1)
    found = await one.record()

    assert "failed" == found.status
    assert "{1, 2}" in found.error
    assert "JSON" in found.error
    assert ["result"] == [event.reason for event in one.seen.failed]


async def test_a_handler_that_takes_too_long_has_failed(bench):
    """An async one is cancelled; a sync one is told, and keeps its slot until it returns."""
    one = bench(concurrency=2)
    let_go = threading.Event()
    cancelled = []

    @one.executor.handler("task", timeout=0.05)
    async def handle(work):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(work.is_cancelled)

    @one.executor.handler("other", timeout=0.05)
    def hang(work):
        let_go.wait(10)
        cancelled.append(work.is_cancelled)

    await one.enqueue("a")
    await one.enqueue("b", name="other")
    planton = one.planton()
    planton.register(one.storage.queue_task("other", delay=0.02))
    async with planton:
        await one.seen.until(2)

        assert 1 == one.executor.capacity()
        let_go.set()
    errors = [event.error for event in one.seen.failed]

    assert 2 == len(cancelled)
    assert cancelled[-1]
    assert all(isinstance(error, CallbackTimeoutError) for error in errors)
    assert "dead" == (await one.record()).status
    assert "within 0.05 s" in (await one.record("b", "other")).error


async def test_threads_that_hold_all_slots_are_told(bench):
    """Nothing is claimed any more, and no error says so."""
    one = bench(concurrency=1)
    let_go = threading.Event()

    @one.executor.handler("task", timeout=0.05)
    def hang(work):
        let_go.wait(10)

    await one.enqueue("a")
    planton = one.planton()
    async with planton:
        await one.seen.until(1)
        warning, *_ = health(planton).warnings
        let_go.set()
        while one.executor.failing("task") is not None:
            await trio.sleep(0.01)

    assert "'task': all slots are held by threads that go on although their time is up" in warning


async def test_a_handler_grants_retries_to_what_has_none(bench):
    """Such as fire times of a cron task; with a delay by the number of deliveries."""
    one = bench()
    delays = []

    def retry_delay(number):
        delays.append(number)
        return 0.01 * number

    @one.executor.handler("task", retries=2, retry_delay=retry_delay)
    def handle(work):
        raise ValueError("broken")

    await one.enqueue("a")
    async with one.planton():
        await one.seen.until(3)

    assert "dead" == (await one.record()).status
    assert [0, 1, 2] == delays


async def test_the_time_limit_of_an_instruction_holds_too(bench):
    """Whatever the handler's own."""
    one = bench()

    @one.executor.handler("task", timeout=60)
    async def handle(work):
        await trio.sleep_forever()

    await one.enqueue("a", timeout=1)
    async with one.planton():
        await one.seen.until(1)

    assert ["timeout"] == [event.reason for event in one.seen.failed]
    assert "within 1 s" in (await one.record()).error


async def test_a_time_limit_is_told_before_another_takes_the_work_over(memory_bench):
    """The lease ends with the time; what is told later than that would be refused."""
    one = memory_bench(latency=0.2)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep_forever()

    await one.enqueue("a", timeout=10)
    async with one.planton():
        await trio.sleep(30)
    found = await one.record()

    assert ["timeout"] == [event.reason for event in one.seen.failed]
    assert ("dead", 1) == (found.status, found.delivery)


async def test_leases_are_renewed_while_handlers_run_and_wait(bench):
    """Async ones, ones that block their thread, and those that wait for a slot."""
    one = bench(concurrency=2)
    deliveries = []

    @one.executor.handler("task")
    def handle(work):
        deliveries.append(work.delivery)
        threading.Event().wait(1.5)

    await one.enqueue("a", "b", "c")
    task = one.storage.queue_task("task", concurrency=10, lease=1.0, delay=0.05)
    planton = Planton(tasks=[task], services=[one.executor.serve])
    planton.on(InstructionEvent, one.executor.submit)
    async with planton:
        await one.seen.until(3)

    assert [1] * 3 == deliveries


async def test_a_handler_may_say_when_to_try_again(memory_bench):
    """It goes before the delay that the handler was given, in a nursery as well."""
    one = memory_bench()

    @one.executor.handler("task", retries=2, retry_delay=1000)
    async def handle(work):
        async with trio.open_nursery():
            raise TryAgain("busy", after=7)

    planton = one.planton(delay=1.0)
    async with planton:
        await one.enqueue("a")
        await trio.sleep(20)

    assert [7.0, 7.0, 7.0] == [each.retry_in for each in one.seen.failed]
    assert 7.0 == pickle.loads(pickle.dumps(TryAgain("busy", after=7))).after


async def test_a_slot_can_be_waited_for(memory_bench):
    """By a program that fetches work from elsewhere."""
    one = memory_bench(concurrency=1)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(10)

    (event,) = await one.claim("a")
    async with one.executor:
        assert 1 == await one.executor.wait_for_slot()
        await one.executor.submit(event)
        began = trio.current_time()
        assert 1 == await one.executor.wait_for_slot()

        assert 10 == pytest.approx(trio.current_time() - began)
