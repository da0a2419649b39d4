"""LogBus's task runner: its `tasks` table, a cron with seconds, retries, and a report by e-mail.

| LogBus | here |
| --- | --- |
| queue, key, priority, payload, start, timeout, retries | `enqueue`: task, instruction, … |
| key LIKE 'foo-%', ORDER BY priority DESC, start, id LIMIT 1 | `queue_task(key=, concurrency=1)` |
| queued, running, succeeded, failed, dead; results, error | the same, in `planton_instruction` |
| locked and worker, if and only if it is running | a lease and a receipt, likewise |
| scheduler -> sql, to retry what stalled | nothing: a lease that is over does that |
| scheduler -> sql, to retry what failed | `retries`; and a cron task that calls `retry` |
| scheduler -> sql -> js -> send-email | a cron task that counts and sends |

To install: pip install 'planton[sqlite,executor]', or [postgres,executor]
To run: python examples/logbus.py [tasks.db | postgresql://user@host/database]
With SMTP=host:port in the environment the report is sent there. With a database named, SECONDS=30
gives you time to kill it in the middle; started again, it goes on when the lease is over.

Prints:
    */33 * * * * * fires at 12:00:33, 12:01:00, 12:01:33; every 33 seconds would be delay=33
    foo-1 is queued a second time: False
    locked if and only if running: True
    foo-2, try 1: {'foo': 'bar'}
    foo-1, try 1: {'foo': 'bar'}
    foo-4, try 1: ConnectionError: a hiccup
    foo-5, try 1: ConnectionError: no network
    foo-6, try 1: GiveUp: a payload without n
    foo-7, try 2: {'foo': 'bar'}
    foo-4, try 2: {'foo': 'bar'}
    foo-5, try 2: ConnectionError: no network
    foo-3, try 1, not before its start: {'foo': 'bar'}
    To: ops@example.com
    Subject: Tasks of the last 24 hours
      default: 1 queued, 5 succeeded, 1 failed, 1 dead
        foo-5 dead: ConnectionError: no network
        foo-6 failed: a payload without n
      slow: 1 queued
    The network is back, and the payload is mended.
    foo-5, try 1: {'foo': 'bar'}
    foo-6, try 1: {'foo': 'bar'}
    foo-7, try 1, came too late and changed nothing
      default: 1 queued, 7 succeeded
      slow: 1 queued
"""

import os
import smtplib
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import attrs
import trio

from planton import Planton, delays
from planton.storage import Status, Storage
from planton_executor import Executor, FailedEvent, GiveUp, SucceededEvent, Work

SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that a foo takes
STATUSES: tuple[Status, ...] = ("queued", "running", "succeeded", "failed", "dead")


async def add_tasks(storage: Storage) -> None:
    """Queue what is not known yet: this may be the second start."""
    known = {record.instruction for record in await storage.find()}

    async def add(key: str, queue: str = "default", **columns: Any) -> None:
        # What the columns of the tasks table have as defaults: 15 minutes and 3 retries.
        columns = {"payload": {"n": 1}, "timeout": 15 * 60.0, "retries": 3, **columns}
        if key not in known:
            await storage.enqueue(queue, key, **columns)

    await add("foo-1")
    if not known:
        print("foo-1 is queued a second time:", await storage.enqueue("default", "foo-1"))
    await add("foo-2", priority=5)
    start = datetime.now(UTC) + timedelta(seconds=1)
    await add("foo-3", priority=-1, run_at=start, payload={"n": 1, "start": start.timestamp()})
    await add("foo-4")
    await add("foo-5", retries=1)
    await add("foo-6", payload={})
    await add("foo-7", timeout=1.5)
    await add("bar-1")  # nobody works on such keys here
    await add("foo-8", "slow")  # nor on this queue


@attrs.define
class Worker:
    """The pipeline's foo-task, and a log of what became of it."""

    storage: Storage
    is_mended: bool = False
    is_stuck: bool = False
    unstick: trio.Event = attrs.field(factory=trio.Event)
    has_failed_late: trio.Event = attrs.field(factory=trio.Event)

    async def foo(self, work: Work) -> dict[str, str]:
        await trio.sleep(SECONDS)
        if work.instruction == "foo-2":
            records = await self.storage.find()
            locked = [each.instruction for each in records if each.lease_expires_at is not None]
            running = [each.instruction for each in records if each.status == "running"]
            print("locked if and only if running:", locked == running)
        elif work.instruction == "foo-4" and work.delivery == 1:
            raise ConnectionError("a hiccup")
        elif work.instruction == "foo-5" and not self.is_mended:
            raise ConnectionError("no network")
        elif work.instruction == "foo-6" and not self.is_mended:
            raise GiveUp("a payload without n")
        elif work.instruction == "foo-7" and work.delivery == 1:
            self.is_stuck = True
            with trio.CancelScope(shield=True):  # it hangs, and will not even be cancelled
                await self.unstick.wait()
        return {"foo": "bar"}

    def log_success(self, event: SucceededEvent) -> None:
        work = event.work
        if work.task_name == "default":
            start = work.payload.get("start")
            is_punctual = start is not None and datetime.now(UTC).timestamp() >= start
            remark = ", not before its start" if is_punctual else ""
            print(f"{work.instruction}, try {work.delivery}{remark}: {event.result}", flush=True)

    def log_failure(self, event: FailedEvent) -> None:
        name = f"{event.work.instruction}, try {event.work.delivery}"
        if event.reason == "lost":
            print(f"{name}, came too late and changed nothing", flush=True)
            self.has_failed_late.set()
        else:
            print(f"{name}: {type(event.error).__name__}: {event.error}", flush=True)


async def count(storage: Storage) -> str:
    """Count by queue and status what was made in the last day, and tell what went wrong."""
    since = datetime.now(UTC) - timedelta(days=1)
    lines = []
    for queue in ("default", "slow"):
        records = await storage.find(task_name=queue, limit=1_000_000)
        counts = Counter(record.status for record in records if record.created_at > since)
        words = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
        lines.append(f"  {queue}: {', '.join(words)}")
        bad = [each for each in records if each.status in ("failed", "dead")]
        lines += sorted(f"    {each.instruction} {each.status}: {each.error}" for each in bad)
    return "\n".join(lines)


def send(message: EmailMessage) -> None:
    print(f"To: {message['To']}\nSubject: {message['Subject']}\n{message.get_content().rstrip()}")
    if "SMTP" in os.environ:
        host, _, port = os.environ["SMTP"].rpartition(":")
        with smtplib.SMTP(host, int(port), timeout=10) as server:
            server.send_message(message)


async def until_no_foo_is(storage: Storage, *statuses: str) -> None:
    """Wait until none in the default queue is in one of these statuses."""
    found = True
    while found:
        await trio.sleep(0.05)
        records = await storage.find(task_name="default")
        found = any(each.status in statuses for each in records if each.instruction != "bar-1")
    await trio.sleep(0.05)  # until the last end is logged


async def run_tasks(storage: Any) -> None:
    worker, reported = Worker(storage), trio.Event()
    executor = Executor(storage, concurrency=2)
    executor.handler("default")(worker.foo)
    executor.on(SucceededEvent, worker.log_success)
    executor.on(FailedEvent, worker.log_failure)

    @executor.handler("report")
    async def report(work: Work) -> None:
        message = EmailMessage()
        message["From"], message["To"] = "tasks@example.com", "ops@example.com"
        message["Subject"] = "Tasks of the last 24 hours"
        message.set_content(await count(storage))
        await trio.to_thread.run_sync(send, message)
        planton.pause("report")  # one is enough for an example
        reported.set()

    @executor.handler("retry")
    async def retry(work: Work) -> int:
        return int(await storage.retry("default"))

    planton = Planton(
        tasks=[
            storage.queue_task("default", key="foo-%", concurrency=1, delay=0.1, lease=10),
            # In earnest "0 0 18 * * *" and "0 */15 * * * *": each time once in the whole fleet.
            storage.cron_task("report", "* * * * * *", delay=0.1),
            storage.cron_task("retry", "* * * * * *", delay=0.1),
        ],
        storages=[storage],
        consumers=[executor],
    )
    planton.pause("report")
    planton.pause("retry")
    async with planton:
        await until_no_foo_is(storage, "queued", "running")
        planton.resume("report")
        await reported.wait()
        print("The network is back, and the payload is mended.")
        worker.is_mended = True
        planton.resume("retry")
        await until_no_foo_is(storage, "queued", "running", "failed", "dead")
        worker.unstick.set()
        if worker.is_stuck:
            await worker.has_failed_late.wait()


def open_storage(database: str) -> Any:
    if "://" in database:
        from planton_postgres import PostgresStorage

        return PostgresStorage(database)
    from planton_sqlite import SQLiteStorage

    return SQLiteStorage(database)


async def main(database: str) -> None:
    moment, times = datetime(2026, 1, 1, 12, tzinfo=UTC), []
    for _ in range(3):
        moment = delays.cron("*/33 * * * * *").next_after(moment)
        times.append(f"{moment:%H:%M:%S}")
    print(f"*/33 * * * * * fires at {', '.join(times)}; every 33 seconds would be delay=33")
    async with open_storage(database) as storage:
        await storage.migrate()
        await add_tasks(storage)
        await run_tasks(storage)
        print(await count(storage))


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/tasks.db")
