"""The locks that come along: exact caps for callbacks of one's own, on any database."""

import subprocess
import sys
from contextlib import ExitStack

import psycopg
import pytest
import trio

from planton import ErrorEvent, InstructionEvent, Planton, StorageError, Task
from planton.testing import EventCollector
from planton_postgres import advisory_lock
from planton_sqlite import file_lock


def test_a_file_lock_is_anothers_for_each_task(tmp_path):
    """Who comes second gets False, until the first has left."""
    lock, other = file_lock(tmp_path / "app.lock"), file_lock(tmp_path / "app.lock")
    with lock("task") as first, other("task") as second, other("other") as third:
        pass
    with other("task") as later:
        pass

    assert (True, False, True, True) == (first, second, third, later)


def test_a_file_that_cannot_be_locked_is_a_clear_error(tmp_path):
    """Here it is something else."""
    lock = file_lock(tmp_path / "app.lock")
    with lock("task"):
        pass
    (file,) = tmp_path.glob("*.db")
    file.write_text("something else" * 100)
    with pytest.raises(StorageError, match="give another path"), lock("task"):
        pass


def test_a_file_lock_of_a_process_that_is_killed_is_free(tmp_path):
    """The system frees it."""
    code = (
        "import sys, time; from planton_sqlite import file_lock\n"
        f"with file_lock({str(tmp_path / 'app.lock')!r})('task') as is_locked:\n"
        "    print(is_locked, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        told = process.stdout.readline()
        with file_lock(tmp_path / "app.lock")("task") as meanwhile:
            pass
        process.kill()
        process.wait()
    with file_lock(tmp_path / "app.lock")("task") as after:
        pass

    assert ("True\n", False, True) == (told, meanwhile, after)


def test_a_file_that_cannot_be_made_is_a_storage_error(tmp_path):
    """It names it."""
    with ExitStack() as stack, pytest.raises(StorageError, match=r"no_folder.*lock"):
        stack.enter_context(file_lock(tmp_path / "no_folder" / "app.lock")("task"))


async def test_an_advisory_lock_is_anothers_for_each_task(postgres_dsn):
    """Who comes second gets False, until the first has left."""
    lock, other = advisory_lock(postgres_dsn), advisory_lock(postgres_dsn)
    async with lock("task") as first, other("task") as second, other("other") as third:
        pass
    async with other("task") as later:
        pass

    assert (True, False, True, True) == (bool(first), second, bool(third), bool(later))


async def test_what_is_done_with_the_connection_of_a_lock_is_committed_with_it(postgres_dsn):
    """And undone if the block raises, or if a statement in it failed."""
    lock = advisory_lock(postgres_dsn)
    async with lock("task") as connection:
        await connection.execute("CREATE TABLE number (id integer)")
        await connection.execute("INSERT INTO number VALUES (1)")
    with pytest.raises(ZeroDivisionError):
        async with lock("task") as connection:
            await connection.execute("INSERT INTO number VALUES (2)")
            raise ZeroDivisionError
    with pytest.raises(StorageError, match="undone"):
        async with lock("task") as connection:
            await connection.execute("INSERT INTO number VALUES (3)")
            with pytest.raises(psycopg.Error):
                await connection.execute("SELECT no_such")
    with psycopg.connect(postgres_dsn) as reader:
        found = reader.execute("SELECT id FROM number").fetchall()

    assert [(1,)] == found


async def test_a_lock_that_is_lost_in_the_middle_is_an_error_and_keeps_the_cap(postgres_dsn):
    """What was claimed meanwhile is given back, not dispatched."""
    released, claimed = [], iter(["a", "b"])

    async def schedule(request):
        await trio.to_thread.run_sync(end_backends, postgres_dsn)
        return [next(claimed)]

    async def release(claims):
        released.extend(claim.instruction for claim in claims)

    task = Task(
        name="task", schedule=schedule, release=release, lock=advisory_lock(postgres_dsn), delay=60
    )
    planton = Planton(get_active_instructions=lambda name: [], tasks=[task])
    seen = EventCollector(planton)
    with trio.fail_after(20):
        async with planton:
            await planton.attempt("task")

    assert ["lock"] == [event.stage for event in seen.of(ErrorEvent)]
    assert (["a"], []) == (released, seen.of(InstructionEvent))


def end_backends(dsn):
    others = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(others)


@pytest.mark.parametrize("kind", ("file", "advisory"))
async def test_two_dispatchers_keep_an_exact_cap_over_callbacks_of_ones_own(
    kind, request, tmp_path
):
    """Count and claim are one critical section, wherever they look."""
    active, most, dsn = set(), [], None
    if kind == "advisory":
        dsn = request.getfixturevalue("postgres_dsn")

    async def get_active_instructions(name):
        found = sorted(active)
        await trio.sleep(0.01)
        return found

    async def schedule(request):
        await trio.sleep(0.01)
        new = [f"{len(most)}.{n}" for n in range(request.limit)]
        active.update(new)
        most.append(len(active))
        return new

    def dispatcher():
        lock = file_lock(tmp_path / "app.lock") if dsn is None else advisory_lock(dsn)
        task = Task(name="task", schedule=schedule, lock=lock, concurrency=3, delay=0.001)
        planton = Planton(get_active_instructions=get_active_instructions, tasks=[task])
        planton.on(InstructionEvent, lambda event: active.discard(event.instruction))
        return planton

    with trio.fail_after(30):
        async with dispatcher(), dispatcher():
            while len(most) < 30:
                await trio.sleep(0.01)

    assert 3 == max(most)
