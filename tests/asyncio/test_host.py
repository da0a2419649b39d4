"""How trio's ticks run on a loop."""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from contextvars import copy_context

import pytest
import trio
import trio.testing

from planton import Planton, PlantonError, Task
from planton.asyncio import _host, _pump, bridge, callback, running
from planton.asyncio._guest import Guest
from planton.asyncio._pump import Pump, PumpClock


class Trio:
    async def call(self, function, *args):
        return await function(*args)


trio_side = bridge(Trio())


def test_the_pump_is_used_where_it_can_be(run, way):
    """Trio's next tick is kept while there is nothing to do."""

    async def main():
        async with running(Planton()):
            await asyncio.sleep(0.02)
            pump = Guest.running().host._pump
            return pump is not None and pump.is_parked

    assert (way == "pump") == run(main)


@pytest.mark.parametrize("name", ("runq", "waiting_for_idle", "guest_tick_scheduled"))
def test_a_trio_without_one_of_the_private_names_runs_without_the_pump(kind, run, name, caplog):
    """It is looked for when a run starts."""

    class Renamed:
        """A tick of another trio."""

        def __init__(self, tick):
            self._tick = tick
            self.unrolled_run_next_send = tick.__self__.unrolled_run_next_send
            self.runner = self

        def __getattr__(self, attribute):
            if attribute == name:
                raise AttributeError(attribute)
            return getattr(self._tick.__self__.runner, attribute)

    async def main():
        guest_tick = []
        loop = asyncio.get_running_loop()

        class Tick:
            def __init__(self, tick):
                self.__self__ = Renamed(tick)

        original = _host.Pump.made
        _host.Pump.made = lambda tick, *parts: guest_tick.append(original(Tick(tick), *parts))
        try:
            async with running(Planton()):
                assert loop is asyncio.get_running_loop()
        finally:
            _host.Pump.made = original
        return guest_tick

    with caplog.at_level(logging.DEBUG):
        assert [None] == run(main)
    assert name in caplog.text


def test_a_loop_that_watches_no_descriptors_runs_without_the_pump(way):
    """The one of Windows."""

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, fd, callback, *args):
            if fd in mine:
                return super().add_reader(fd, callback, *args)
            raise NotImplementedError

        def _add_reader(self, fd, callback, *args):
            mine.add(fd)
            return super()._add_reader(fd, callback, *args)

    mine = set()

    async def main():
        async with running(Planton()) as handle:
            await handle.call(trio.sleep, 0.01)
            return Guest.running().host._pump

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(main()) is None


# Rule 11: the program has its turns


def test_ticks_that_follow_each_other_leave_the_program_its_turns(run):
    """A trio task that never waits."""

    async def busy(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await trio.lowlevel.checkpoint()

    async def main():
        turns = 0
        task = asyncio.create_task(trio_side.call(busy, 0.2))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert run(main) > 20


def test_ticks_that_follow_each_other_share_a_turn(run, monkeypatch):
    """A turn of the loop costs more than a tick."""

    seen = []

    async def busy():
        before = turns
        for _ in range(200):
            await trio.lowlevel.checkpoint()
        seen.append(turns - before)

    async def main():
        nonlocal turns
        task = asyncio.create_task(trio_side.call(busy))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1

    turns = 0
    monkeypatch.setattr(_host, "BUDGET", 10)
    run(main)

    assert [0] == seen


def test_callbacks_that_begin_one_after_the_other_share_a_turn(run, monkeypatch):
    """What they end with is stored together, then; a turn each would halve the batches."""
    monkeypatch.setattr(_host, "BUDGET", 1e-6)  # a turn of the loop for each tick
    monkeypatch.setattr(_host, "HOLD", 10)
    seen = []

    @callback
    async def work():
        seen.append(turns)

    async def later(ticks):
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        await work()

    async def begin():
        async with trio.open_nursery() as nursery:
            for ticks in range(5):
                nursery.start_soon(later, ticks)

    async def main():
        nonlocal turns
        task = asyncio.create_task(trio_side.call(begin))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1

    turns = 0
    run(main)

    assert seen[:1] * 5 == seen


def test_a_callback_begins_although_trio_is_never_done(run):
    """It waits for others for some milliseconds only."""
    seen = []

    @callback
    async def work():
        seen.append("began")

    async def busy():
        until = time.monotonic() + 10
        while not seen and time.monotonic() < until:
            await trio.lowlevel.checkpoint()

    async def both():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            nursery.start_soon(work)

    async def main():
        async with asyncio.timeout(5):
            await trio_side.call(both)

    run(main)

    assert ["began"] == seen


# Waiting


def test_trio_wakes_for_its_deadlines(run):
    """A later one that is moved forward, an earlier one after a later one."""

    async def main():
        async with running(Planton()) as handle:
            later = asyncio.create_task(handle.call(trio.sleep, 0.2))
            await asyncio.sleep(0.02)
            began = time.monotonic()
            await handle.call(trio.sleep, 0.05)
            assert 0.045 < time.monotonic() - began < 0.15
            await later
            await handle.call(trio.sleep, 0)

    run(main)


def test_trio_wakes_for_its_sockets_threads_and_tokens(run):
    """Whatever its own loop would wake for."""

    async def ping_pong():
        left, right = trio.socket.socketpair()
        with left, right:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.send, b"ping")
                received = await right.recv(4)
        token = trio.lowlevel.current_trio_token()
        event = trio.Event()
        timer = threading.Timer(0.01, token.run_sync_soon, [event.set])
        timer.start()
        await event.wait()
        timer.join()
        return received, await trio.to_thread.run_sync(lambda: trio.from_thread.run(answer))

    async def answer():
        return "from a thread"

    async def main():
        return await trio_side.call(ping_pong)

    assert (b"ping", "from a thread") == run(main)


def test_wait_all_tasks_blocked_waits_by_trio_itself(run):
    """It has to see that nothing happens."""

    async def main():
        async with running(Planton()) as handle:
            async with asyncio.timeout(5):
                await handle.call(trio.testing.wait_all_tasks_blocked)
                await handle.call(trio.testing.wait_all_tasks_blocked, 0.01)

    run(main)


@pytest.mark.parametrize("poller", _pump.POLLERS)
def test_a_signal_handler_that_makes_something_runnable_is_not_missed(poller):
    """Between the look at what is runnable and the wait."""

    class State:
        def __init__(self):
            self.runner = self
            self.io_manager = self
            setattr(self, poller, poll)
            self.unrolled_run_next_send = self
            self.value = []
            self.runq, self.waiting_for_idle = ["a trio task"], False
            self.guest_tick_scheduled = True

        def tick(self):
            pass

    async def main():
        nonlocal poll
        poll, other = socket.socketpair()
        clock, state = PumpClock(), State()
        loop = asyncio.get_running_loop()
        pump = Pump(state.tick, clock, loop, copy_context(), print)
        clock.deadline_to_sleep_time(1)
        assert not pump.park(state.tick)
        assert state.guest_tick_scheduled
        pump.close()
        poll.close()
        other.close()

    poll = None
    asyncio.run(main())


# Rule 9: what blocks the loop blocks Planton


def test_blocking_code_on_the_loop_stops_dispatch(run):
    """The price of one thread; programs that block use planton.hosting."""
    times = []

    async def schedule(request):
        times.append(time.monotonic())
        return []

    async def main():
        task = Task(name="task", schedule=callback(schedule), cap="strict", delay=0.01)
        async with running(Planton(tasks=[task])):
            await asyncio.sleep(0.05)
            began = time.monotonic()
            time.sleep(0.3)
            ended = time.monotonic()
            await asyncio.sleep(0.05)
        return [at for at in times if began < at < ended]

    assert [] == run(main)


# When trio breaks


def test_a_trio_that_breaks_ends_all_who_wait_for_it(run):
    """They would hang; both sides are told."""
    seen = []

    async def crash():
        raise ValueError("an internal error")

    async def hop():
        try:
            await asyncio.sleep(30)
        finally:
            seen.append("the coroutine is cancelled")

    async def main():
        handle = running(Planton())
        await handle.__aenter__()
        waiting = asyncio.create_task(handle.call(callback(hop)))
        bridged = asyncio.create_task(handle.call(trio.sleep, 30))
        await asyncio.sleep(0.05)
        Guest.running().spawn(crash)
        results = await asyncio.gather(waiting, bridged, return_exceptions=True)
        with pytest.raises(PlantonError, match="trio ended"):
            await handle.__aexit__(None, None, None)
        return [type(result) for result in results]

    assert [PlantonError] * 2 == run(main)
    assert ["the coroutine is cancelled"] == seen


BREAKS = """
import asyncio, trio
from planton import Planton, PlantonError
from planton.asyncio import callback, running
from planton.asyncio._guest import Guest
from planton.asyncio._pump import PumpClock

async def hop():
    try:
        await asyncio.sleep(30)
    finally:
        seen.append("the coroutine is cancelled")

async def main():
    handle = running(Planton())
    await handle.__aenter__()
    waiting = asyncio.create_task(handle.call(callback(hop)))
    await asyncio.sleep(0.05)
    Guest.running().spawn(trio.lowlevel.checkpoint)
    PumpClock.current_time = None  # it is called, which fails
    for awaitable in (waiting, handle.__aexit__(None, None, None)):
        try:
            await awaitable
        except PlantonError as error:
            print(error)
    await asyncio.sleep(0.01)
    print(*seen, Guest.running())

seen = []
asyncio.run(main())
"""


def test_an_internal_error_of_trio_ends_all_who_wait_for_it():
    """No trio task runs any more, not even to clean up; a process of its own for what is left."""
    done = subprocess.run(
        [sys.executable, "-c", BREAKS], capture_output=True, text=True, timeout=30
    )
    broken = "trio ended in the middle of it: TrioInternalError"

    told = [line.split("(")[0] for line in done.stdout.splitlines()]

    assert [broken, broken, "the coroutine is cancelled None"] == told


def test_a_trio_that_cannot_be_ended_without_its_loop_is_told(way, new_loop, monkeypatch):
    """The thread cannot run trio any more; nothing hangs."""
    from planton.asyncio import _guest

    monkeypatch.setattr(_guest, "BURIAL", 0.05)

    async def stubborn():
        with trio.CancelScope(shield=True):
            await event.wait()

    async def begin():
        await block.__aenter__()
        Guest.running().spawn(stubborn)
        await asyncio.sleep(0.01)

    async def again():
        async with running(Planton()):
            return "again"

    event = trio.Event()
    block = running(Planton())
    first, second = new_loop(), new_loop()
    first.run_until_complete(begin())
    first.close()
    with pytest.raises(PlantonError, match="cannot be ended"):
        second.run_until_complete(again())
    monkeypatch.setattr(_guest, "BURIAL", 10)
    event.set()

    assert "again" == second.run_until_complete(again())
    second.close()


def test_a_run_that_cannot_start_leaves_ctrl_c_alone():
    """Trio says why."""
    loop = asyncio.new_event_loop()
    handlers = []

    async def main():
        with pytest.raises(RuntimeError, match="from inside"):
            _host.Host(loop).start(trio.sleep_forever, done=print)
        handlers.append(signal.getsignal(signal.SIGINT))

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    trio.run(main)
    signal.signal(signal.SIGINT, previous)
    loop.close()

    assert "KIManager" in repr(handlers[0])


def test_the_rest_of_planton_never_imports_asyncio():
    """Who is on trio does not pay for it."""
    code = (
        "import sys, planton, planton.delays, planton.hosting, planton.storage, planton.testing, "
        "planton_executor, planton_sqlite; sys.exit('asyncio' in sys.modules)"
    )

    assert 0 == subprocess.run([sys.executable, "-c", code]).returncode
