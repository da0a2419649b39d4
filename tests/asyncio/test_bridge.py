"""`bridge`: what asyncio code calls of trio."""

import asyncio
import copy
from contextlib import suppress
from contextvars import ContextVar

import pytest
import sniffio
import trio

from planton import AlreadyRunningError, Planton, PlantonError, StorageError
from planton.asyncio import bridge, callback, running
from planton.asyncio._guest import Guest
from planton.testing import MemoryStorage
from planton_sqlite import SQLiteStorage

var = ContextVar("var", default="unset")


class Storage:
    """Anything with async methods."""

    kind = "any"

    def __init__(self):
        self.seen = []
        self.event = trio.Event()

    async def __aenter__(self):
        # As driver pools do: entered and left by one trio task, or it breaks.
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self.seen.append("opened")
        return self

    async def __aexit__(self, *exc):
        await self._manager.__aexit__(*exc)
        self.seen.append("closed")

    def plain(self, value):
        return value

    async def add(self, first, *, second):
        await trio.sleep(0)
        return first + second

    async def fail(self):
        raise ValueError("of the storage")

    async def look(self):
        return var.get(), sniffio.current_async_library()

    async def wait(self):
        await self.event.wait()
        return "woken"

    async def slow(self):
        try:
            await trio.sleep(30)
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.sleep(0.05)
            self.seen.append("ended")

    async def commit(self):
        with trio.CancelScope(shield=True):
            await trio.sleep(0.1)
        self.seen.append("committed")


def test_a_bridge_opens_a_storage_for_a_program_that_runs_no_planton(run, tmp_path):
    """In one trio task, which holds it open; the guest is ended with it."""
    jobs = bridge(SQLiteStorage(tmp_path / "app.db"))

    async def main():
        async with jobs as opened:
            await opened.migrate()
            assert await jobs.enqueue("task", "1", priority=3)
            return [(found.instruction, found.status) for found in await jobs.find()]

    assert [("1", "queued")] == run(main)


def test_a_bridge_is_opened_and_closed_by_one_trio_task(run):
    """What trio's own context managers need."""
    storage = Storage()

    async def main():
        async with bridge(storage):
            pass

    run(main)

    assert ["opened", "closed"] == storage.seen


def test_a_bridge_beside_a_planton_shares_its_guest(run):
    """It needs no block of its own when the storage is open."""
    jobs = bridge(MemoryStorage())

    async def main():
        async with running(Planton()):
            guest = Guest.running()
            assert await jobs.enqueue("task", "1")
            assert guest is Guest.running()

    run(main)


def test_a_bridge_starts_the_guest_for_a_single_call(run):
    """And ends it afterwards."""

    async def main():
        assert 3 == await bridge(Storage()).add(1, second=2)
        assert not trio.lowlevel.in_trio_run()

    run(main)


def test_errors_of_a_call_are_raised_as_they_are(run):
    """In the asyncio task that awaits it."""

    async def main():
        with pytest.raises(ValueError, match="of the storage"):
            await bridge(Storage()).fail()

    run(main)


def test_what_is_no_coroutine_function_stays_as_it_is():
    """Also without a loop."""
    jobs = bridge(Storage())

    assert ("any", 17) == (jobs.kind, jobs.plain(17))
    with pytest.raises(AttributeError):
        jobs.nothing  # noqa: B018
    assert isinstance(copy.copy(jobs), type(jobs))


def test_context_variables_go_along(run):
    """A call sees those of its caller."""

    async def main():
        var.set("of the request")
        return await bridge(Storage()).look()

    assert ("of the request", "trio") == run(main)


def test_trio_code_may_use_a_bridge_too(run):
    """It is the storage as it was."""
    jobs = bridge(Storage())

    async def on_trio():
        return await jobs.look()

    async def main():
        async with running(Planton()) as handle:
            return await handle.call(on_trio)

    assert ("unset", "trio") == run(main)


def test_a_callback_may_use_a_bridge(run):
    """From trio to asyncio and back to trio."""
    jobs = bridge(Storage())

    @callback
    async def work():
        return await jobs.add(1, second=2)

    async def main():
        async with running(Planton()) as handle:
            return await handle.call(work)

    assert 3 == run(main)


def test_a_bridge_cannot_be_opened_twice(run):
    """One storage, one block."""

    async def main():
        jobs = bridge(Storage())
        async with jobs:
            with pytest.raises(AlreadyRunningError):
                await jobs.__aenter__()
            assert 3 == await jobs.add(1, second=2)
        async with jobs:
            pass

    run(main)


def test_a_bridge_needs_a_running_loop():
    """It says so."""
    call = bridge(Storage()).add(1, second=2)
    with pytest.raises(PlantonError, match="needs a running asyncio loop"):
        call.send(None)


# Rule 7: cancellation


@pytest.mark.parametrize("times", (1, 2))
def test_a_cancelled_call_waits_for_trios_side_to_end(run, times):
    """However often it is cancelled."""
    storage = Storage()

    async def main():
        task = asyncio.create_task(bridge(storage).slow())
        await asyncio.sleep(0.05)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        return list(storage.seen)

    assert ["ended"] == run(main)


def test_a_call_may_be_cancelled_at_any_moment(run):
    """Also while trio ends: it is gone afterwards, and may be started again."""
    storage = Storage()

    async def main():
        for turns in range(40):
            task = asyncio.create_task(bridge(storage).add(1, second=2))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

            assert not trio.lowlevel.in_trio_run()
            assert Guest.running() is None

    run(main)


def test_a_cancelled_call_raises_although_it_was_committed(run):
    """As asyncio drivers do."""
    storage = Storage()

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await bridge(storage).commit()
        assert not asyncio.current_task().cancelling()

    run(main)

    assert ["committed"] == storage.seen


def test_a_cancelled_bridge_closes_its_storage(run):
    """The block has its `CancelledError`, the storage its end."""
    storage = Storage()

    async def main():
        async def program():
            async with bridge(storage):
                await asyncio.sleep(30)

        task = asyncio.create_task(program())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)

    assert ["opened", "closed"] == storage.seen


def test_a_storage_that_hangs_when_it_is_closed_is_cancelled_by_a_second_cancellation(run):
    """Nothing else would end it."""

    class Hanging(Storage):
        async def __aexit__(self, *exc):
            await super().__aexit__(*exc)
            try:
                await trio.sleep_forever()
            finally:
                self.seen.append("cancelled")

    storage = Hanging()

    async def main():
        async def program():
            async with bridge(storage):
                pass

        task = asyncio.create_task(program())
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)

    assert ["opened", "closed", "cancelled"] == storage.seen


# Rule 11: what asyncio code may do in trio without awaiting


def test_plain_functions_of_trio_may_be_called_from_asyncio_code(run):
    """Setting an event, cancelling a scope, moving its deadline: trio sees it at once."""
    storage = Storage()
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def sleep(scope):
        with scope:
            await trio.sleep_forever()
        return "cancelled"

    async def main():
        async with running(Planton()) as handle:
            waiting = asyncio.create_task(bridge(storage).wait())
            sleeping = [asyncio.create_task(handle.call(sleep, scope)) for scope in scopes]
            await asyncio.sleep(0.05)
            storage.event.set()
            scopes[0].cancel()
            scopes[1].deadline = trio.current_time() + 0.02
            async with asyncio.timeout(2):
                return await asyncio.gather(waiting, *sleeping)

    assert ["woken", "cancelled", "cancelled"] == run(main)


def test_a_storage_that_is_entered_on_asyncio_without_a_bridge_says_what_to_use(run, tmp_path):
    """It is not left half open, and can be used rightly afterwards."""
    storage = SQLiteStorage(tmp_path / "app.db")

    async def main():
        with pytest.raises(StorageError, match=r"on asyncio use planton.asyncio.bridge\(storage\)"):
            async with storage:
                pass  # pragma: no cover
        async with bridge(storage) as jobs:
            with pytest.raises(StorageError, match="this is no trio task: on asyncio use"):
                await storage.find()
            return await jobs.find()

    assert [] == run(main)
