"""Celery, with a worker as a process and Redis as its broker."""

import subprocess
import sys
import uuid

import celery
import pytest
import trio

from planton import Planton
from planton_brokers import Relay
from planton_brokers.celery import CeleryQueue, InstructionTask
from planton_sqlite import SQLiteStorage

APP = """
import os
import celery
from planton_brokers.celery import InstructionTask
from planton_sqlite import SQLiteStorage

app = celery.Celery("app", broker={url!r})
app.conf.task_default_queue = {queue!r}


@app.task(
    base=InstructionTask, name="send", open_storage=lambda: SQLiteStorage({path!r}), retry_limit=1
)
def send(work):
    with open({log!r}, "a") as file:
        print(work.instruction, work.delivery, file=file)
    if work.instruction == "b":
        raise OSError("disk full")
    if work.instruction == "c":
        raise SystemError
    return {{"sent": work.payload}}
"""


@pytest.fixture
def app(redis_port, tmp_path):
    """The app, and its worker as a process."""
    url, queue = f"redis://127.0.0.1:{redis_port}", uuid.uuid4().hex
    path, log = str(tmp_path / "app.db"), str(tmp_path / "log")
    (tmp_path / "app.py").write_text(APP.format(url=url, queue=queue, path=path, log=log))
    app = celery.Celery("app", broker=url)
    app.conf.task_default_queue = queue
    options = ["--pool", "solo", "--loglevel", "warning", "--without-mingle", "--without-gossip"]
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", *options]
    worker = subprocess.Popen(command, cwd=tmp_path)
    yield app
    worker.kill()
    worker.wait()


async def test_a_worker_takes_over_executes_and_reports(app, tmp_path):
    """What fails is tried again as the task says; a message that comes again is dropped."""
    storage = SQLiteStorage(tmp_path / "app.db")
    relay = Relay(CeleryQueue(app, task="send"))
    task = storage.queue_task("mail", concurrency=100, delay=0.2, lease=relay.transit)
    planton = Planton(storages=[storage], consumers=[relay], tasks=[task])
    async with storage, planton:
        await storage.enqueue("mail", "a", payload=1)
        await storage.enqueue("mail", "b")
        await storage.enqueue("mail", "d", payload=4)
        with trio.fail_after(40):
            while any(each.status in ("queued", "running") for each in await storage.find()):
                await trio.sleep(0.2)
        found = {each.instruction: each for each in await storage.find()}

    assert ["succeeded", "dead", "succeeded"] == [found[name].status for name in "abd"]
    assert {"sent": 1} == found["a"].result
    assert "OSError: disk full" == found["b"].error
    assert ["a 1", "b 1", "b 2", "d 1"] == sorted((tmp_path / "log").read_text().splitlines())


async def test_a_claim_that_is_anothers_is_not_executed(tmp_path):
    """The function is not called; that of a claim that is ours is, in the thread of the caller."""
    import threading

    from planton import InstructionEvent

    calls = []
    path = tmp_path / "app.db"

    class Task(InstructionTask):
        open_storage = staticmethod(lambda: SQLiteStorage(path))

        def run(self, work):
            calls.append((work.instruction, threading.get_ident()))
            return 5

    async with SQLiteStorage(path) as storage:
        await storage.enqueue("mail", "a")
        events = []
        planton = Planton(tasks=[storage.queue_task("mail", lease=60)])
        planton.on(InstructionEvent, events.append)
        await planton.attempt("mail")
        text = events[0].to_json()
        threads = []

        def execute():
            threads.append(threading.get_ident())
            return [Task()(text), Task()(text)]

        assert [5, None] == await trio.to_thread.run_sync(execute)
        (record,) = await storage.find()

    assert [("a", threads[0])] == calls
    assert ("succeeded", 5) == (record.status, record.result)


async def test_a_message_that_is_no_event_fails_the_celery_task():
    """Celery says so; there is nothing to report to."""
    with pytest.raises(ValueError, match="text"):
        await trio.to_thread.run_sync(InstructionTask(), "{")


async def test_a_broker_that_is_away_is_an_error_in_a_moment():
    """And its password is not shown."""
    app = celery.Celery("app", broker="redis://:secret@127.0.0.1:1")
    queue = CeleryQueue(app, task="send")
    with trio.fail_after(20), pytest.raises(Exception, match="refused"):
        async with queue.connect():
            pass

    assert "secret" not in str(queue)
