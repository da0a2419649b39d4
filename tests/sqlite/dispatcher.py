"""A dispatcher with its consumers, as a process of its own: `dispatcher.py OPTIONS-AS-JSON`.

Consumers hold each instruction for some milliseconds and note when they began and ended, by the
clock that all processes of a machine share. The notes are printed at the end, one JSON a line.
"""

import json
import os
import random
import signal
import sys
import time

import trio

from planton import ErrorEvent, InstructionEvent, Planton
from planton_sqlite import SQLiteStorage


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(options: dict) -> None:
    notes = []
    async with SQLiteStorage(options["path"], synchronous=options["synchronous"]) as storage:
        await storage.migrate()
        tasks = [
            storage.queue_task(name, concurrency=cap, lease=options["lease"], delay=0.004)
            for name, cap in options["caps"].items()
        ]
        planton = Planton(tasks=tasks, services=[storage.serve])

        async def work(event: InstructionEvent) -> None:
            begun = time.monotonic()
            await trio.sleep(random.uniform(*options["hold"]))
            notes.append((event.task_name, event.instruction, begun, time.monotonic()))
            if options["die"] == "before complete":
                print(event.receipt, flush=True)
                die()
            await storage.complete(event.receipt)

        async with trio.open_nursery() as nursery:

            @planton.on(InstructionEvent)
            def start(event: InstructionEvent) -> None:
                if options["die"] == "before delivery":
                    print(event.receipt, flush=True)
                    die()
                nursery.start_soon(work, event)

            @planton.on(ErrorEvent)
            def fail(event: ErrorEvent) -> None:
                print(repr(event.error), file=sys.stderr, flush=True)

            async with planton:
                await trio.sleep(options["seconds"])
    for note in notes:
        print(json.dumps(note))


if __name__ == "__main__":
    defaults = {
        "synchronous": "NORMAL",
        "caps": {"task": 1},
        "lease": 60.0,
        "hold": (0.005, 0.02),
        "die": "",
        "seconds": 60.0,
    }
    trio.run(main, {**defaults, **json.loads(sys.argv[1])})
