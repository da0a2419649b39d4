"""A process that works: python worker.py KIND WHERE MODE MARKS.

It appends a line to the file MARKS whenever a handler or a step begins.
"""

import os
import signal
import sys
from functools import partial

import attrs
import trio

from planton import InstructionEvent, Planton
from planton_executor import Executor, FailedEvent, Step, Steps, SucceededEvent, done, then

KIND, WHERE, MODE, MARKS = sys.argv[1:]


def mark(text: str) -> None:
    with open(MARKS, "a") as file:
        file.write(f"{text}\n")


def die() -> None:
    """As when somebody pulls the plug."""
    os.kill(os.getpid(), signal.SIGKILL)


@attrs.frozen
class Count(Step):
    number: int

    async def step(self, context):
        mark(f"step {self.number} try {context.tries}")
        if self.number == 3 and context.tries == 1:
            die()
        return done(self.number) if self.number == 5 else then(Count(self.number + 1))


async def handle(work):
    mark(f"{work.instruction} delivery {work.delivery}")
    if MODE == "hang" and work.delivery == 1:
        await trio.sleep_forever()
    if MODE == "die" and work.delivery == 1:
        die()
    if MODE == "stop" and work.delivery == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return f"delivery {work.delivery}"


async def main() -> None:
    if KIND == "postgres":
        from planton_postgres import PostgresStorage as Storage
    else:
        from planton_sqlite import SQLiteStorage as Storage
    storage = Storage(WHERE)
    executor = Executor(storage, concurrency=3)
    executor.handler("task")(handle)
    executor.on(FailedEvent, lambda event: print("failed", event.reason, flush=True))
    executor.on(SucceededEvent, lambda event: print("succeeded", event.result, flush=True))
    steps = Steps(executor, "steps", [Count])
    if MODE == "json":
        async with storage:
            await consume(executor)
        return
    make = partial(storage.queue_task, lease=0.6, delay=0.05)
    tasks = [make("task"), make(steps.name)]
    await Planton(tasks=tasks, storages=[storage], consumers=[executor]).run()


async def consume(executor: Executor) -> None:
    """Take events from a broker; here it is a pipe."""
    async with executor, trio.lowlevel.FdStream(os.dup(0)) as pipe:
        rest = b""
        async for data in pipe:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                await executor.submit(InstructionEvent.from_json(line))


trio.run(main)
