"""The executor on tables of the user's: three functions instead of a storage."""

import sqlite3

import pytest
import trio

from planton import Claim, ErrorEvent, InstructionEvent, InvalidArgumentError, Planton, Task
from planton_executor import Callbacks, Executor, GiveUp, Steps


class Mails:
    """A user's own table, with an own way to claim; time is that of trio's clock."""

    def __init__(self, *ids):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute(
            "CREATE TABLE mail (id TEXT, state TEXT DEFAULT 'new', tries INT DEFAULT 0, due REAL"
            " DEFAULT 0, note TEXT, seen REAL)"
        )
        self.connection.executemany("INSERT INTO mail (id) VALUES (?)", [(each,) for each in ids])

    async def active(self, task_name):
        sql = "SELECT id FROM mail WHERE state = 'running' AND seen > ? - 30"
        return [each for (each,) in self.connection.execute(sql, [trio.current_time()])]

    async def claim(self, request):
        sql = (
            "UPDATE mail SET state = 'running', tries = tries + 1, seen = :now WHERE id IN (SELECT"
            " id FROM mail WHERE (state = 'new' AND due <= :now OR state = 'running' AND"
            " seen <= :now - 30) LIMIT :limit) RETURNING id, tries"
        )
        values = {"now": trio.current_time(), "limit": request.limit}
        rows = self.connection.execute(sql, values).fetchall()
        return [Claim(instruction=id_, delivery=tries, lease=30) for id_, tries in rows]

    def complete(self, work, result):
        self._end(work, "sent", result)

    async def fail(self, work, error, retry_in):
        due = trio.current_time() + (retry_in or 0)
        state = "new" if retry_in is not None else "failed"
        sql = "UPDATE mail SET state = ?, note = ?, due = ? WHERE id = ?"
        self.connection.execute(sql, [state, str(error), due, work.instruction])

    async def heartbeat(self, work):
        sql = "UPDATE mail SET seen = ? WHERE id = ? AND state = 'running'"
        found = self.connection.execute(sql, [trio.current_time(), work.instruction])
        return found.rowcount == 1

    def _end(self, work, state, note):
        sql = "UPDATE mail SET state = ?, note = ? WHERE id = ?"
        self.connection.execute(sql, [state, note, work.instruction])

    def rows(self):
        return self.connection.execute("SELECT id, state, tries, note FROM mail").fetchall()


@pytest.fixture
def mails():
    return Mails("a", "b", "c", "d")


async def run(mails, handle, *, seconds, retries=0, grace=10.0, **callbacks):
    async def complete(work, result):
        return mails.complete(work, result)

    given = {"complete": complete, "fail": mails.fail, "heartbeat": mails.heartbeat, **callbacks}
    executor = Executor(Callbacks(**given), concurrency=2, grace=grace)
    executor.handler("mail", retries=retries, retry_delay=5)(handle)
    task = Task(
        name="mail",
        schedule=mails.claim,
        get_active_instructions=mails.active,
        concurrency=2,
        delay=1,
    )
    async with Planton(tasks=[task], consumers=[executor]):
        await trio.sleep(seconds)
    return executor


async def test_three_functions_are_enough(mails, autojump_clock):
    """They note what is done, what failed and whether there is another try, and renew leases."""

    async def handle(work):
        await trio.sleep(100 if work.instruction == "a" else 1)
        if work.instruction == "b":
            raise GiveUp("no such address")
        if work.instruction == "c":
            raise ValueError("busy")
        return f"sent {work.instruction}"

    await run(mails, handle, seconds=150, retries=2)

    assert [
        ("a", "sent", 1, "sent a"),
        ("b", "failed", 1, "no such address"),
        ("c", "failed", 3, "busy"),
        ("d", "sent", 1, "sent d"),
    ] == mails.rows()


async def test_a_heartbeat_that_returns_false_breaks_the_work_off(mails, autojump_clock):
    """It is another's by then, and is not noted."""
    broken_off = []

    async def handle(work):
        if work.instruction != "a":
            return
        try:
            await trio.sleep_forever()
        finally:
            broken_off.append((work.instruction, trio.current_time() < 32))

    async def take_it_away():
        await trio.sleep(15)
        mails.connection.execute("UPDATE mail SET state = 'taken' WHERE id = 'a'")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_it_away)
        await run(mails, handle, seconds=60)

    assert [("a", True)] == broken_off
    assert ("a", "taken", 1, None) == mails.rows()[0]


async def test_work_that_is_broken_off_at_the_end_is_released(mails, autojump_clock):
    """By `release`, or by `fail` without it."""
    released = []

    async def handle(work):
        await trio.sleep_forever()

    async def release(work):
        released.append(work.instruction)

    await run(mails, handle, seconds=5, grace=1.0)
    states = {id_: (state, note) for id_, state, _, note in mails.rows()}
    await run(mails, handle, seconds=5, grace=1.0, release=release)

    assert ("new", "the handler of task 'mail' did not return before the end") == states["a"]
    assert ["a", "b"] == sorted(released)


async def test_a_callback_that_fails_is_called_again(mails, autojump_clock):
    """Until it has noted it; a sync one in a thread, which may exit."""
    failures = [OSError("away"), SystemExit(1), OSError("away")]

    async def handle(work):
        return "done"

    async def complete(work, result):
        if failures:
            raise failures.pop()
        mails.complete(work, result)

    await run(mails, handle, seconds=60, complete=complete)

    assert {"sent"} == {state for _, state, _, _ in mails.rows()}


async def test_a_heartbeat_that_fails_is_told_and_tried_again(mails, autojump_clock):
    """In time for its lease; it holds up no other heartbeat."""
    beats, errors = [], []

    async def heartbeat(work):
        first = work.instruction not in beats
        if work.instruction == "a" and first:
            beats.append("a")
            raise OSError("away")
        await trio.sleep(1)
        beats.append(work.instruction)

    executor = Executor(Callbacks(heartbeat=heartbeat), grace=20)
    executor.on(ErrorEvent, lambda event: errors.append(str(event.error)))

    @executor.handler("mail")
    async def handle(work):
        await trio.sleep(18)

    async with executor:
        for name in "ab":
            claim = {"lease": 30, "claimed_at": trio.current_time()}
            await executor.submit(InstructionEvent(task_name="mail", instruction=name, **claim))

    assert ["away"] == errors
    assert ["a", "b"] == beats[:2]
    assert 2 == beats.count("a")


@pytest.mark.parametrize("is_ours", (True, False))
async def test_what_came_from_elsewhere_is_renewed_before_it_begins(is_ours, autojump_clock):
    """With functions there is nothing to take a claim over with: `heartbeat` says whose it is."""
    called = []

    async def heartbeat(work):
        return is_ours

    executor = Executor(Callbacks(heartbeat=heartbeat))

    @executor.handler("mail")
    async def handle(work):
        called.append(work.instruction)

    event = InstructionEvent(task_name="mail", instruction="a")
    async with executor:
        await executor.submit(InstructionEvent.from_json(event.to_json()))

    assert (["a"] if is_ours else []) == called


async def test_a_callback_that_never_works_is_given_up(mails, autojump_clock):
    """The work counts as failed, for nobody can note what it returned; the slot is free."""
    calls = []

    async def handle(work):
        return "done"

    async def complete(work, result):
        calls.append(work.instruction)
        raise TypeError("a bug")

    await run(mails, handle, seconds=200, complete=complete)
    _, state, _, note = mails.rows()[0]

    assert "failed" == state
    assert "its result cannot be stored: TypeError: a bug" in note
    assert len(calls) < 100


async def test_callbacks_may_be_plain_functions_or_none_at_all():
    """Then nothing is noted, and handlers are called all the same."""
    seen = []

    async def handle(work):
        seen.append((work.instruction, work.receipt))

    for callbacks in (Callbacks(), Callbacks(complete=lambda work, result: seen.append(result))):
        executor = Executor(callbacks)
        executor.handler("mail")(handle)
        async with executor:  # which drains at its end; plain functions run in threads
            await executor.submit(InstructionEvent(task_name="mail", instruction="a"))

    assert [("a", ""), ("a", ""), None] == seen


def test_callbacks_are_looked_at():
    """When they are given, and not when there is something to note."""
    for options, word in (
        ({"complete": 5}, "complete is 5: give a function"),
        ({"fail": lambda work: None}, "fail is .*: it must take 3 arguments"),
        ({"heartbeat": lambda: None}, "heartbeat is .*: it must take 1 argument"),
    ):
        with pytest.raises(InvalidArgumentError, match=word):
            Callbacks(**options)
    with pytest.raises(InvalidArgumentError, match="steps need one that has a storage"):
        Steps(Executor(Callbacks()), "steps", [])
