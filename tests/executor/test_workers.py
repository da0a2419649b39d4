"""How work is shared out: workers, slots, and ends that are sent together."""

import contextvars
import threading

import pytest
import trio

from planton import StorageError
from planton.storage import Acknowledged
from planton_executor import SucceededEvent

SEEN = contextvars.ContextVar("SEEN", default="nothing")


async def test_no_handler_sees_the_context_variables_of_another(memory_bench):
    """Though a worker serves one after the other."""
    one = memory_bench(concurrency=1)
    seen = []

    @one.executor.handler("task")
    async def handle(work):
        seen.append(SEEN.get())
        if work.instruction != "b":
            SEEN.set(work.instruction)

    async with one.executor:
        SEEN.set("that of who submits")
        for event in await one.claim("a", "b", "c"):
            await one.executor.submit(event)

    assert ["nothing"] * 3 == seen


async def test_handlers_that_wait_run_side_by_side(memory_bench):
    """As many as there are slots, from the first moment on."""
    one = memory_bench(concurrency=10)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(10)

    events = await one.claim(*map(str, range(10)))
    async with one.executor:
        for event in events:
            await one.executor.submit(event)
        await trio.sleep(9.9)
        assert [] == one.seen.succeeded
        await trio.sleep(0.2)

    assert 10 == len(one.seen.succeeded)


async def test_handlers_that_never_wait_let_others_have_their_turn(bench):
    """Heartbeats, for one."""
    one = bench(concurrency=10)
    turns = []

    async def count_turns():
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(len(one.seen.words))

    @one.executor.handler("task")
    async def block(work):
        threading.Event().wait(0.01)

    events = await one.claim(*map(str, range(10)))
    async with trio.open_nursery() as nursery, one.executor:
        nursery.start_soon(count_turns)
        for event in events:
            await one.executor.submit(event)
        await one.seen.until(10)
        nursery.cancel_scope.cancel()

    assert 2 < len(set(turns))


async def test_ends_that_come_together_share_a_commit(memory_bench):
    """Different ones, too; the slots are free when it is done, and not before."""
    one = memory_bench(concurrency=10, latency=1.0)

    @one.executor.handler("task", retries=1, retry_delay=60)
    async def handle(work):
        if work.instruction == "9":
            raise ValueError("broken")
        return {"number": work.instruction}

    events = await one.claim(*map(str, range(10)))
    async with one.executor:
        began = trio.current_time()
        for event in events:
            await one.executor.submit(event)
        await trio.sleep(0.9)
        assert [] == one.seen.succeeded
        await one.seen.until(10)

        assert 1.0 == trio.current_time() - began
    assert {"number": "3"} == (await one.record("3")).result


async def test_claims_join_the_commit_that_frees_their_slots(memory_bench):
    """With ten slots and a storage that takes a second, twenty instructions take three commits."""
    one = memory_bench(concurrency=10, latency=1.0)
    times = []

    @one.executor.handler("task")
    async def handle(work):
        times.append(trio.current_time())

    await one.enqueue(*map(str, range(20)))
    async with one.planton(concurrency=10, delay=60) as planton:
        await trio.sleep(10)
        planton.wake()
        await trio.sleep(40)
    first, *_, last = times

    assert 20 == len(times)
    assert 1.0 == last - first


async def test_no_slot_is_promised_while_async_listeners_keep_it(memory_bench):
    """Nor while the storage is away."""
    one = memory_bench(concurrency=1, latency=1.0)
    free = []

    @one.executor.on(SucceededEvent)
    async def listen(event):
        free.append(one.executor.capacity())

    one.executor.handler("task")(print_nothing)
    (event,) = await one.claim("a")
    async with one.executor:
        await one.executor.submit(event)
        await trio.sleep(0.5)
        free.append(one.executor.capacity())
        await trio.sleep(1)
        free.append(one.executor.capacity())

    assert [0, 0, 1] == free


class PartlyBroken:
    """A storage that cannot store one of its instructions."""

    def __init__(self, storage, error):
        self._storage = storage
        self._error = error
        self.refused = []

    def __getattr__(self, name):
        return getattr(self._storage, name)

    async def report_many(self, reports):
        answers = []
        for kind, receipts, values in reports:
            if kind == "complete" and '"poison"' in values:
                self.refused.append(len(receipts))
                answers.append(self._error)
            else:
                answers += await self._storage.report_many([(kind, receipts, values)])
        return answers


@pytest.mark.parametrize("error", (StorageError("db", "invalid byte"), TypeError("broken")))
async def test_a_result_that_a_storage_refuses_again_and_again_ends_as_failed(memory_bench, error):
    """Others are stored meanwhile; it is not tried for ever."""
    one = memory_bench()
    broken = PartlyBroken(one.storage, error)
    other = type(one)(broken)

    @other.executor.handler("task")
    async def handle(work):
        await trio.sleep(float(work.instruction))
        return "poison" if work.instruction == "0" else work.instruction

    events = await one.claim(*map(str, range(6)))
    async with other.executor:
        for event in events:
            await other.executor.submit(event)
        await other.seen.until(6)
    found = await one.record("0")

    assert "failed" == found.status
    assert "its result cannot be stored: " in found.error
    assert 5 == len(other.seen.succeeded)
    assert len(broken.refused) < 30


class Deaf:
    """A storage that refuses all ends of one instruction."""

    def __init__(self, storage):
        self._storage = storage

    def __getattr__(self, name):
        return getattr(self._storage, name)

    async def report_many(self, reports):
        return [
            ValueError("no") if kind == "fail" else Acknowledged(tuple(receipts), ())
            for kind, receipts, _ in reports
        ]


async def test_an_end_that_can_never_be_stored_frees_its_slot_and_is_told(memory_bench):
    """The claim is left to its lease."""
    one = memory_bench()
    other = type(one)(Deaf(one.storage))

    @other.executor.handler("task")
    async def handle(work):
        raise ValueError("broken")

    a, b = await one.claim("a", "b")
    async with other.executor:
        for event in (a, b):
            await other.executor.submit(event)
        await trio.sleep(1)

        assert 10 == other.executor.capacity()
    assert ["no", "no"] == [str(error) for error in other.seen.errors]


async def print_nothing(work):
    """Does nothing."""
