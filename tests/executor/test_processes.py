"""Workers in processes of their own: events as JSON, kills at every stage, late writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from planton import InstructionEvent, Planton

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(params=("sqlite", "postgres"))
def kind(request):
    """Memory is no place for two processes."""
    return request.param


@pytest.fixture
def worker(kind, where, tmp_path):
    """Start a worker that ends with the test at the latest."""
    started = []

    def start(mode, **options):
        command = [sys.executable, "-W", "error", WORKER, kind, where, mode, tmp_path / "marks"]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def marks(tmp_path):
    def read():
        path = tmp_path / "marks"
        return path.read_text().splitlines() if path.exists() else []

    return read


async def until(condition, seconds=20):
    with trio.fail_after(seconds):
        while not (found := await condition()):
            await trio.sleep(0.02)
    return found


def status_is(bench, status, name="task"):
    async def look():
        return status == (await bench.record("a", name)).status

    return look


async def test_a_consumer_in_another_process_gets_events_as_json(bench, worker):
    """And reports by receipt to the same storage; all are done when the pipe is closed."""
    one = bench()
    process = worker("json")
    planton = Planton(tasks=[one.storage.queue_task("task", concurrency=3, delay=0.02)])

    @planton.on(InstructionEvent)
    def send(event):
        process.stdin.write(event.to_json() + "\n")
        process.stdin.flush()

    names = [f"n{number}" for number in range(9)]
    await one.enqueue(*names, payload={"ä": [1]})

    async def all_done():
        found = await one.storage.find(task_name="task", status="succeeded")
        return len(found) == len(names)

    async with planton:
        await until(all_done)
    output, _ = await trio.to_thread.run_sync(process.communicate)

    assert ["succeeded delivery 1"] * 9 == output.splitlines()
    assert 0 == process.returncode


async def test_work_in_hand_is_done_again_when_its_process_was_killed(bench, worker, marks):
    """After the lease; nothing is lost, and the second knows that it is the second."""
    one = bench()
    await one.enqueue("a")
    first = worker("hang")

    async def begun():
        return marks()

    await until(begun)
    first.kill()
    worker("hang")
    await until(status_is(one, "succeeded"))

    assert ["a delivery 1", "a delivery 2"] == marks()
    assert "delivery 2" == (await one.record()).result


async def test_work_that_was_done_and_not_reported_is_done_again(bench, worker, marks):
    """Killed between the handler's last line and the report: at least once, and no less."""
    one = bench()
    await one.enqueue("a")
    first = worker("die")

    assert -signal.SIGKILL == await trio.to_thread.run_sync(first.wait)
    worker("die")
    await until(status_is(one, "succeeded"))

    assert ["a delivery 1", "a delivery 2"] == marks()


async def test_steps_go_on_at_the_last_one_that_was_stored(bench, worker, marks):
    """What was done before is not done again."""
    one = bench()
    await one.enqueue("a", name="steps", payload={"steps": {"Count": {"number": 1}}})
    first = worker("steps")

    assert -signal.SIGKILL == await trio.to_thread.run_sync(first.wait)
    left = await one.record("a", "steps")
    worker("steps")
    await until(status_is(one, "succeeded", "steps"))

    assert {"steps": {"Count": {"number": 3}}} == left.payload
    assert [
        "step 1 try 1",
        "step 2 try 1",
        "step 3 try 1",
        "step 3 try 2",
        "step 4 try 1",
        "step 5 try 1",
    ] == marks()


async def test_a_process_that_stood_still_changes_nothing_when_it_wakes(bench, worker, marks):
    """Stopped for longer than the lease: its late report is refused, and it is told."""
    one = bench()
    await one.enqueue("a")
    first = worker("stop")

    async def begun():
        return marks()

    await until(begun)
    second = worker("stop")
    await until(status_is(one, "succeeded"))
    os.kill(first.pid, signal.SIGCONT)
    told = await trio.to_thread.run_sync(first.stdout.readline)

    assert "failed lost\n" == told
    assert "succeeded delivery 2\n" == await trio.to_thread.run_sync(second.stdout.readline)
    assert "delivery 2" == (await one.record()).result
