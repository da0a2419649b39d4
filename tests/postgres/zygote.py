"""Starts dispatchers and consumers in a moment: imports once, forks for each line that it reads.

A line is a JSON object with the role and its options; the answer is the pid. The dispatcher puts
its events into a table `inbox`, as a broker would; consumers take them from there, and write down
in `outcome` what became of their report.
"""

import json
import os
import random
import signal
import sys

import trio

from planton import ErrorEvent, InstructionEvent, Planton
from planton_postgres import PostgresStorage
from planton_postgres._driver import Pool

TAKE = """
DELETE FROM inbox WHERE id = (SELECT id FROM inbox ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING event
"""


async def dispatch(options):
    async with (
        PostgresStorage(options["dsn"], listen_dsn=options.get("listen_dsn")) as storage,
        Pool(options["dsn"], size=1) as pool,
    ):
        task = storage.queue_task(
            "work", concurrency=options["cap"], lease=options["lease"], delay=options["delay"]
        )
        planton = Planton(tasks=[task], services=[storage.serve])
        planton.on(ErrorEvent, lambda event: None)

        @planton.on(InstructionEvent)
        async def deliver(event):
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO inbox (event) VALUES (%s)", [event.to_json()])

        await planton.run()


async def consume(options):
    async with PostgresStorage(options["dsn"]) as storage, Pool(options["dsn"], size=1) as pool:
        while True:
            async with pool.connection() as connection:
                row = await (await connection.execute(TAKE)).fetchone()
            if row is None:
                await trio.sleep(random.uniform(0.002, 0.01))
                continue
            event = InstructionEvent.from_json(row[0])
            await trio.sleep(random.uniform(*options["hold"]))
            done = await storage.complete(event.receipt)
            outcome = (event.instruction, event.receipt, bool(done.applied))
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO outcome VALUES (%s, %s, %s)", outcome)


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        options = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            trio.run({"dispatcher": dispatch, "consumer": consume}[options["role"]], options)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
