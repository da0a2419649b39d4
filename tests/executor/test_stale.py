"""Events that are old or came twice: one of those that hold them executes."""

import attrs
import trio

from planton import InstructionEvent


def counting(one, seconds=0.0):
    """Let the executor count what it executes."""
    done = []

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(seconds)
        done.append((work.instruction, work.receipt))

    return done


async def test_a_message_that_comes_three_times_is_executed_once(bench):
    """The first consumer that has a slot takes it over; the others drop it."""
    one = bench(concurrency=3)
    done = counting(one)
    (event,) = await one.claim("a")
    async with one.executor:
        for _ in range(3):
            await one.executor.submit(through_broker(event))
        await one.seen.until(3)

    assert ["a"] == [instruction for instruction, _ in done]
    assert event.receipt not in [receipt for _, receipt in done]
    assert ["lost", "lost"] == [failed.reason for failed in one.seen.failed]
    assert ["started a"] == [word for word in one.seen.words if word.startswith("started")]
    assert "succeeded" == (await one.record()).status


async def test_a_message_that_comes_again_while_it_runs_waits_and_is_dropped(memory_bench):
    """Under concurrency 1, as three deliveries of a broker would come."""
    one = memory_bench(concurrency=1)
    done = counting(one, 100)
    (event,) = await one.claim("a", lease=30)
    async with trio.open_nursery() as nursery, one.executor:
        for _ in range(3):
            nursery.start_soon(one.executor.submit, through_broker(event))
        await trio.sleep(150)

    assert 1 == len(done)
    assert "succeeded" == (await one.record()).status


async def test_a_message_that_waited_longer_than_its_lease_is_dropped(memory_bench):
    """Its claim was given to another by then."""
    one = memory_bench()
    done = counting(one)
    (event,) = await one.claim("a", lease=30)
    await trio.sleep(31)
    await one.claim(lease=30)
    async with one.executor:
        await one.executor.submit(through_broker(event))
        await trio.sleep(1)

        assert 10 == one.executor.capacity()
    assert [] == done
    assert ["failed a", "idle"] == one.seen.words
    assert ["lost"] == [failed.reason for failed in one.seen.failed]
    assert ("running", 2) == ((await one.record()).status, (await one.record()).delivery)


async def test_a_claim_taken_over_is_renewed_and_ends_by_its_new_receipt(memory_bench):
    """For as long as its handler runs."""
    one = memory_bench()
    done = counting(one, 100)
    (event,) = await one.claim("a", lease=3)
    async with one.executor:
        await one.executor.submit(through_broker(event))
        await trio.sleep(120)

    assert 1 == len(done)
    assert ("succeeded", 1) == ((await one.record()).status, (await one.record()).delivery)


async def test_an_old_event_is_checked_before_its_handler_is_called(memory_bench):
    """By a heartbeat; a claim that was ended meanwhile is not executed."""
    one = memory_bench()
    done = counting(one)
    a, b = await one.claim("a", "b", lease=30)
    await one.storage.complete(b.receipt)
    await trio.sleep(11)
    async with one.executor:
        for event in (a, b):
            await one.executor.submit(aged(event, 11))

    assert ["a"] == [instruction for instruction, _ in done]
    assert ["lost"] == [failed.reason for failed in one.seen.failed]


async def test_a_young_event_is_not_checked(memory_bench):
    """That would cost a transaction for each."""
    one = memory_bench(latency=1.0)
    done = counting(one)
    (event,) = await one.claim("a", lease=30)
    async with one.executor:
        began = trio.current_time()
        await one.executor.submit(aged(event, 9))
        await trio.testing.wait_all_tasks_blocked()

        assert ["a"] == [instruction for instruction, _ in done]
        assert began == trio.current_time()


async def test_an_event_of_unknown_age_is_checked(memory_bench):
    """Somebody made it who was told of the receipt."""
    one = memory_bench()
    done = counting(one)
    (event,) = await one.claim("a")
    await one.storage.complete(event.receipt)
    made = InstructionEvent(task_name="task", instruction="a", receipt=event.receipt)
    async with one.executor:
        await one.executor.submit(aged(made, None))

    assert [] == done
    assert ["lost"] == [failed.reason for failed in one.seen.failed]


async def test_a_check_waits_for_a_storage_that_is_away(memory_bench):
    """And says so once; the handler is called when the claim is known to be ours."""
    one = memory_bench()
    done = counting(one)
    (event,) = await one.claim("a", lease=600)
    one.storage.connection.execute("ALTER TABLE planton_active RENAME TO gone")
    async with one.executor:
        await one.executor.submit(aged(event, 400))
        await trio.sleep(30)

        assert [] == done
        one.storage.connection.execute("ALTER TABLE gone RENAME TO planton_active")
        await one.seen.until(1)

    assert ["a"] == [instruction for instruction, _ in done]
    assert 1 == len(one.seen.errors)


async def test_a_time_limit_counts_from_the_claim(memory_bench):
    """What the event has waited is gone: the lease ends with the time."""
    one = memory_bench()
    counting(one, 60)
    await one.enqueue("a", timeout=20)
    (event,) = await one.claim(lease=60)
    await trio.sleep(8)
    async with one.executor:
        await one.executor.submit(aged(event, 8))
        await trio.sleep(10.9)
        assert [] == one.seen.failed
        await trio.sleep(0.2)

    assert ["timeout"] == [failed.reason for failed in one.seen.failed]


def through_broker(event):
    """Return the event as a consumer in another process gets it."""
    return InstructionEvent.from_json(event.to_json())


def aged(event, seconds):
    """Return the event as if it had waited so long; None for nobody knows."""
    claimed_at = None if seconds is None else trio.current_time() - seconds
    return attrs.evolve(event, claimed_at=claimed_at)
