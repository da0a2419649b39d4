"""A dispatcher or a consumer, as a process of its own: `fault_worker.py OPTIONS-AS-JSON`.

Dispatchers send events over sockets that consumers have in a folder. Each notes what it does in a
file of its own, a line at a time, so that it is known up to the instant at which it is killed.
"""

import json
import os
import random
import sys
from pathlib import Path

import trio

from planton import ErrorEvent, InstructionEvent, Planton, StorageError
from planton_sqlite import SQLiteStorage


class Worker:
    def __init__(self, options: dict) -> None:
        self.options = options
        self.folder = Path(options["folder"])
        self.notes = os.open(self.folder / f"{os.getpid()}.notes", os.O_CREAT | os.O_WRONLY)

    def note(self, *what: object) -> None:
        os.write(self.notes, f"{json.dumps(what)}\n".encode())

    async def dispatch(self, storage: SQLiteStorage) -> None:
        task = storage.queue_task(
            "task", concurrency=self.options["cap"], lease=self.options["lease"], delay=0.05
        )
        planton = Planton(tasks=[task], services=[storage.serve])
        socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM)

        @planton.on(InstructionEvent)
        async def send(event: InstructionEvent) -> None:
            await trio.sleep(self.options["think"])
            consumers = list(self.folder.glob("*.socket"))
            random.shuffle(consumers)
            for consumer in consumers:
                try:
                    await socket.sendto(event.to_json().encode(), str(consumer))
                except OSError:
                    continue  # it was killed
                self.note("sent", event.instruction, event.receipt)
                return
            raise ConnectionError("no consumer lives")

        @planton.on(ErrorEvent)
        def fail(event: ErrorEvent) -> None:
            if not isinstance(event.error, ConnectionError):
                self.note("error", repr(event.error))

        self.note("ready")
        await planton.run()

    async def consume(self, storage: SQLiteStorage) -> None:
        socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM)
        await socket.bind(str(self.folder / f"{os.getpid()}.socket"))
        self.note("ready")
        async with trio.open_nursery() as nursery:
            while True:
                data = await socket.recv(65536)
                nursery.start_soon(self.work, storage, InstructionEvent.from_json(data.decode()))

    async def work(self, storage: SQLiteStorage, event: InstructionEvent) -> None:
        await trio.sleep(random.uniform(*self.options["hold"]))
        try:
            done = await storage.complete(event.receipt)
        except StorageError as error:
            self.note("error", repr(error))
            return
        self.note("applied" if done.applied else "stale", event.instruction, event.receipt)


async def main(options: dict) -> None:
    worker = Worker(options)
    async with SQLiteStorage(options["path"], synchronous="NORMAL") as storage:
        await getattr(worker, options["role"])(storage)


if __name__ == "__main__":
    trio.run(
        main, {"lease": 1.0, "cap": 20, "hold": (0.02, 0.1), "think": 0, **json.loads(sys.argv[1])}
    )
