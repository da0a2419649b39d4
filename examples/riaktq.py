"""riaktq's task queue: instances with features, restarts, rollbacks, transitions, an observer.

| riaktq | here |
| --- | --- |
| riaktq_task:open | `storage.enqueue` |
| status: todo; nextup; done, failed | queued; running; succeeded, failed or dead |
| tags: features that the instance must have (not implemented) | `tags` of enqueue and queue_task |
| priority, retry; in, out | priority, retries; payload, result or error |
| cat, sat, laf | created_at, claimed_at, ended_at - claimed_at |
| assignee | claimed_by, the `name` of the storage |
| an instance, which executes one task at a time | a Planton with `Executor(concurrency=1)` |
| its input queue, where tasks wait for it | nothing: it takes one when it can begin |
| the scheduler assigns tasks, and commits them, once a minute | a claim and an end, each at once |
| it restarts failed tasks, one priority lower | `lower_priority` |
| it rolls back what a lost instance had | a lease that is over |
| one scheduler, whose iterations do not overlap | `cron_task(…, concurrency=1)` of all instances |
| riaktq_eventm_task | `executor.on(StartedEvent, …)` and the like |
| observer: time; queries by status and age | `cron_task`; `storage.find(status=, older_than=)` |

To install: pip install 'planton[sqlite,executor]', or [postgres,executor]
To run: python examples/riaktq.py [tasks.db | postgresql://user@host/database]
With a database named, SECONDS=30 gives you time to kill it in the middle; started again, it goes on
when the lease is over. And `python examples/riaktq.py tasks.db echo-2` is an instance by itself.

Prints:
    instances: echo-1, echo-2, echo-3, echo-4 (gpu), echo-5 (gpu, tape)
    tape is nextup at echo-5, a process of its own, which is killed: -9
      echo-5 is back; assigned to echo-5 once more, in delivery 2: done, out=['to', 'tape']
    task-42 is opened
      assign: status=nextup, in=echo, out=None, priority=0, retry=0
      close: status=done, in=echo, out=echo, priority=0, retry=0
      created, started, ended in this order: True; laf is their difference: True
    task-43 is opened
      assign: status=nextup, in=flaky, out=None, priority=0, retry=2
      close: failed, ConnectionError: try 1
      assign: status=nextup, in=flaky, out=None, priority=-1, retry=1
      close: failed, ConnectionError: try 2
      assign: status=nextup, in=flaky, out=None, priority=-2, retry=0
      close: status=done, in=flaky, out=flaky, priority=-2, retry=0
    task-44 is opened
      assign: status=nextup, in=broken, out=None, priority=0, retry=0
      close: failed, ValueError: broken
    20 more: 5 at a time, by 5 instances, at most one by each: True
    gpu: by an instance that has it: True
    gpu and tape: by echo-5
    quantum: todo, no instance has it
    scheduler: 3 iterations or more: True, one at a time: True, each of a time of its own: True
    observer, at the time of day that was set, once: True
      tasks-that-done: 25
      tasks-that-failed: task-44
      tasks-that-are-todo-for-a-second: quantum
"""

import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import attrs
import trio

from planton import InstructionEvent, Planton
from planton.storage import InstructionRecord, Storage
from planton_executor import Executor, FailedEvent, StartedEvent, SucceededEvent, Work

SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that a task takes
INSTANCES: dict[str, tuple[str, ...]] = {
    "echo-1": (),
    "echo-2": (),
    "echo-3": (),
    "echo-4": ("gpu",),
    "echo-5": ("gpu", "tape"),
}
TODO, NEXTUP, DONE, FAILED = "todo", "nextup", "done", "failed"
STATUSES = {
    "queued": TODO,
    "running": NEXTUP,
    "succeeded": DONE,
    "failed": FAILED,
    "dead": FAILED,
}
ITERATION = 1.2  # seconds: longer than the interval, which is one


@attrs.define
class World:
    """What instances of this process have in common, to tell of them: not needed by them."""

    told: set[str] = attrs.field(factory=set)
    at_work: Counter[str] = attrs.field(factory=Counter)
    most_by_one: int = 0
    party: int = 0
    most: int = 0
    is_complete: trio.Event = attrs.field(factory=trio.Event)
    reports: list[str] = attrs.field(factory=list)
    has_reported: trio.Event = attrs.field(factory=trio.Event)

    async def meet(self, name: str) -> None:
        """Wait until as many as the party are at work."""
        self.at_work[name] += 1
        self.most_by_one = max(self.most_by_one, self.at_work[name])
        self.most = max(self.most, self.at_work.total())
        if self.most >= self.party:
            self.is_complete.set()
        await self.is_complete.wait()
        self.at_work[name] -= 1


async def find(storage: Storage, instruction: str) -> InstructionRecord:
    records = await storage.find(task_name="task", limit=1000)
    return next(each for each in records if each.instruction == instruction)


@attrs.frozen
class Transitions:
    """Is told what becomes of tasks, at one instance."""

    storage: Storage
    world: World

    def listen(self, executor: Executor) -> None:
        executor.on(StartedEvent, self.assign)
        executor.on(SucceededEvent, self.close)
        executor.on(FailedEvent, self.fail)

    async def assign(self, event: StartedEvent) -> None:
        await self._tell("assign", event.work)

    async def close(self, event: SucceededEvent) -> None:
        await self._tell("close", event.work)

    def fail(self, event: FailedEvent) -> None:
        if event.work.instruction in self.world.told:
            print(f"  close: failed, {type(event.error).__name__}: {event.error}")

    async def _tell(self, transition: str, work: Work) -> None:
        if work.instruction in self.world.told:
            task = await find(self.storage, work.instruction)
            print(
                f"  {transition}: status={STATUSES[task.status]}, in={task.payload},"
                f" out={task.result}, priority={task.priority}, retry={task.retries}"
            )


@attrs.frozen
class Instance:
    """An instance: its handlers, and what runs them."""

    name: str
    storage: Any
    world: World
    is_process: bool
    worker: Executor
    manager: Executor
    planton: Planton

    async def submit(self, event: InstructionEvent) -> None:
        await (self.worker if event.task_name == "task" else self.manager).submit(event)

    async def echo(self, work: Work) -> Any:
        """Do a task: give back what it was given."""
        if work.payload == ["to", "tape"] and self.is_process:
            os.kill(os.getpid(), signal.SIGKILL)  # the power failed, say
        await trio.sleep(SECONDS)
        if work.payload == "flaky" and work.delivery < 3:
            raise ConnectionError(f"try {work.delivery}")
        if work.payload == "broken":
            raise ValueError("broken")
        if work.payload == "party":
            await self.world.meet(self.name)
        return work.payload

    async def iterate(self, work: Work) -> None:
        """Do what is to be done once per interval, by one instance of all; here: tidy up."""
        await self.storage.prune(older_than=7 * 24 * 3600)
        await trio.sleep(ITERATION)

    async def observe_at(self, daily: str) -> None:
        self.manager.handler("observer")(self.observe)
        self.planton.register(self.storage.cron_task("observer", daily, delay=0.1, lease=10))
        await self.planton.attempt("observer")

    async def observe(self, work: Work) -> None:
        """Report by status and age."""

        async def names(**query: Any) -> list[str]:
            records = await self.storage.find(task_name="task", limit=1000, **query)
            return [each.instruction for each in records]

        failed = await names(status="dead") + await names(status="failed")
        todo = await names(status="queued", older_than=1)
        self.world.reports += [
            f"tasks-that-done: {len(await names(status='succeeded'))}",
            f"tasks-that-failed: {', '.join(failed)}",
            f"tasks-that-are-todo-for-a-second: {', '.join(todo)}",
        ]
        self.world.has_reported.set()


@asynccontextmanager
async def run_instance(
    database: str, name: str, world: World, *, is_process: bool = False
) -> AsyncIterator[Instance]:
    """Run one, in this process or in another: all that they share is the database."""
    async with open_storage(database, name) as storage:
        worker = Executor(storage, concurrency=1)
        manager = Executor(storage)
        planton = Planton(
            tasks=[
                storage.queue_task(
                    "task",
                    tags=INSTANCES[name],
                    concurrency=1000,  # of all instances together
                    capacity=worker.capacity,  # of this one
                    delay=0.1,
                    lease=1 if is_process else 10,
                ),
                # In earnest "* * * * *": each minute once in the whole fleet, one at a time.
                storage.cron_task("scheduler", "* * * * * *", concurrency=1, delay=0.1, lease=10),
            ],
            services=[storage.serve, worker.serve, manager.serve],
        )
        here = Instance(name, storage, world, is_process, worker, manager, planton)
        worker.handler("task", retry_delay=0.05, lower_priority=True)(here.echo)
        manager.handler("scheduler")(here.iterate)
        Transitions(storage, world).listen(worker)
        planton.on(InstructionEvent, here.submit)
        async with planton:
            yield here


@attrs.frozen
class Shell:
    """What you might type into riaktq's shell."""

    database: str
    storage: Any
    world: World

    async def open(self, name: str, value: Any, **columns: Any) -> None:
        """Open a task, unless an earlier start did."""
        known = await self.storage.find(task_name="task", limit=1000)
        if name not in {each.instruction for each in known}:
            await self.storage.enqueue("task", name, payload=value, **columns)

    async def closed(self, name: str) -> InstructionRecord:
        """Wait until a task is done or failed."""
        while (task := await find(self.storage, name)).ended_at is None:
            await trio.sleep(0.02)
        await trio.sleep(0.02)  # until listeners were told
        return task

    async def lose_an_instance(self) -> None:
        await self.open("tape", ["to", "tape"], tags=["tape"])
        if (await find(self.storage, "tape")).delivery == 0:
            command = [sys.executable, __file__, self.database, "echo-5"]
            process = await trio.run_process(command, check=False)
            print("tape is nextup at echo-5, a process of its own, which is killed:", end=" ")
            print(process.returncode)

    async def get_it_back(self) -> None:
        task = await self.closed("tape")
        again = f"assigned to {task.claimed_by} once more"
        status, out = STATUSES[task.status], task.result
        print(f"  echo-5 is back; {again}, in delivery {task.delivery}: {status}, out={out}")

    async def follow(self, name: str, value: str, **columns: Any) -> InstructionRecord:
        print(name, "is opened")
        self.world.told.add(name)
        await self.open(name, value, **columns)
        return await self.closed(name)

    async def play(self) -> None:
        task = await self.follow("task-42", "echo")
        cat, sat, end = task.created_at, task.claimed_at, task.ended_at
        assert sat is not None
        assert end is not None
        is_long_enough = end - sat >= timedelta(seconds=SECONDS)
        print(f"  created, started, ended in this order: {cat <= sat <= end};", end=" ")
        print(f"laf is their difference: {is_long_enough}")
        await self.follow("task-43", "flaky", retries=2)
        await self.follow("task-44", "broken")

    async def crowd(self) -> None:
        names = [f"crowd-{number}" for number in range(1, 21)]
        records = await self.storage.find(task_name="task", limit=1000)
        ended = {each.instruction for each in records if each.ended_at is not None}
        self.world.party = min(len(INSTANCES), len(set(names) - ended))
        for name in names:
            await self.open(name, "party")
        for name in names:
            await self.closed(name)
        is_one = self.world.most_by_one == 1
        print(f"{len(names)} more: {self.world.most} at a time, by 5 instances,", end=" ")
        print(f"at most one by each: {is_one}")

    async def need_features(self) -> None:
        await self.open("gpu", "render", tags=["gpu"])
        await self.open("gpu and tape", "render", tags=["gpu", "tape"])
        await self.open("quantum", "entangle", tags=["quantum"])
        task = await self.closed("gpu")
        print("gpu: by an instance that has it:", "gpu" in INSTANCES[str(task.claimed_by)])
        task = await self.closed("gpu and tape")
        print("gpu and tape: by", task.claimed_by)
        task = await find(self.storage, "quantum")
        print(f"quantum: {STATUSES[task.status]}, no instance has it")

    async def look_at_the_scheduler(self) -> None:
        ended: list[Any] = []
        while len(ended) < 3:
            await trio.sleep(0.05)
            ended = await self.storage.find(status="succeeded", task_name="scheduler")
        ended.sort(key=lambda each: each.claimed_at)
        one_by_one = all(one.ended_at <= two.claimed_at for one, two in pairwise(ended))
        all_differ = len({each.instruction for each in ended}) == len(ended)
        print(f"scheduler: 3 iterations or more: {len(ended) >= 3},", end=" ")
        print(f"one at a time: {one_by_one}, each of a time of its own: {all_differ}")

    async def observe(self, instances: list["Instance"]) -> None:
        """In earnest the time would be 00:00:00, and be known from the start."""
        time = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
        daily = f"{time.second} {time.minute} {time.hour} * * *"
        for each in instances:
            await each.observe_at(daily)
        await self.world.has_reported.wait()
        records = await self.storage.find(task_name="observer")
        times = [datetime.fromisoformat(each.instruction) for each in records]
        print("observer, at the time of day that was set, once:", times.count(time) == 1)
        for report in self.world.reports:
            print(f"  {report}")


def open_storage(database: str, name: str | None = None) -> Any:
    if "://" in database:
        from planton_postgres import PostgresStorage

        return PostgresStorage(database, name=name)
    from planton_sqlite import SQLiteStorage

    return SQLiteStorage(database, name=name)


async def main(database: str) -> None:
    world = World()
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_storage(database))
        await storage.migrate()
        names = (f"{k} ({', '.join(v)})" if v else k for k, v in INSTANCES.items())
        print("instances:", ", ".join(names))
        shell = Shell(database, storage, world)
        await shell.lose_an_instance()
        instances = [
            await stack.enter_async_context(run_instance(database, name, world))
            for name in INSTANCES
        ]
        await shell.get_it_back()
        await shell.play()
        await shell.crowd()
        await shell.need_features()
        await shell.look_at_the_scheduler()
        for each in instances:
            each.planton.pause("scheduler")
        await shell.observe(instances)


async def run_alone(database: str, name: str) -> None:
    async with run_instance(database, name, World(), is_process=True):
        await trio.sleep_forever()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        trio.run(run_alone, sys.argv[1], sys.argv[2])
    else:
        trio.run(main, sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/tasks.db")
