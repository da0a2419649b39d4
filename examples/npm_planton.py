"""The e-mail example of the npm package planton: on its own schema, and with the adapter.

First with plain callbacks and psycopg: `maintenance_task` says how many at once and for how long,
`maintenance_task_execution` is what is active. Then the same with Planton's adapter, which brings
tables for that. Both begin with two dispatchers that attempt at the same moment: callbacks count
first and claim then, so both find room for two; the adapter does both in one transaction.

To install: pip install 'planton[postgres]'
To run: python examples/npm_planton.py postgresql://user@host/database
It makes two schemas there, with_callbacks and with_adapter, and leaves them for you to look at. To
see that nothing is lost: SECONDS=30 makes e-mails slow; kill it, and start it again without.

Prints:
    With callbacks:
      two dispatchers at the same moment: 4 active, concurrency 2
      dispatched 5
      dispatched 6
      dispatched 7
      dispatched 8
      sent 7 of 8, cap advisory; account 8: mailbox full
    With the adapter:
      two dispatchers at the same moment: 2 active, concurrency 2
      dispatched 3
      dispatched 4
      dispatched 5
      dispatched 6
      dispatched 7
      dispatched 8
      dispatched 8, delivery 2
      sent 8 of 8, cap strict
"""

import math
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import attrs
import psycopg
import trio
from psycopg.conninfo import make_conninfo

from planton import Claim, InstructionEvent, Planton, ScheduleRequest, Task, delays
from planton_postgres import PostgresStorage

TASK = "send_user_email"
SECONDS = float(os.environ.get("SECONDS", "0.05"))  # that an e-mail takes
LOST = 10.0  # seconds without a sign of life after which somebody else gets the work

ACCOUNTS = """
CREATE TABLE user_account (id integer PRIMARY KEY, email_sent_at timestamptz);
INSERT INTO user_account (id) SELECT generate_series(1, 8);
"""


# ------------------------------------------------------------------------ with your own callbacks

# That of the npm package, with the keys that its README leaves out, and the row of our task.
SCHEMA = """
CREATE TABLE maintenance_task (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    nid text NOT NULL,
    maximum_execution_duration interval DEFAULT '00:05:00'::interval NOT NULL,
    maximum_concurrent_execution_count integer DEFAULT 0 NOT NULL
);
CREATE UNLOGGED TABLE maintenance_task_execution (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    maintenance_task_id integer NOT NULL,
    instruction text,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    hostname text,
    state text NOT NULL,
    error jsonb,
    terminated_at timestamp with time zone,
    terminated_reason text,
    last_seen_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT maintenance_task_execution_check
        CHECK (((state = 'COMPLETED'::text) OR (ended_at IS NULL))),
    CONSTRAINT maintenance_task_execution_check1
        CHECK (((terminated_at IS NULL) OR (ended_at IS NOT NULL))),
    CONSTRAINT maintenance_task_execution_state_check
        CHECK ((state = ANY (ARRAY['RUNNING'::text, 'COMPLETED'::text])))
);
CREATE INDEX maintenance_task_id_idx
    ON maintenance_task_execution USING btree (maintenance_task_id);
CREATE INDEX maintenance_task_execution_ended_at_maintenance_task_id_idx
    ON maintenance_task_execution USING btree (ended_at, maintenance_task_id);
CREATE INDEX maintenance_task_execution_maintenance_task_id_idx
    ON maintenance_task_execution USING btree (maintenance_task_id) WHERE (ended_at IS NULL);
CREATE UNIQUE INDEX maintenance_task_name_idx ON maintenance_task USING btree (nid);
ALTER TABLE ONLY maintenance_task_execution
    ADD CONSTRAINT maintenance_task_execution_maintenance_task_id_fkey
    FOREIGN KEY (maintenance_task_id) REFERENCES maintenance_task(id) ON DELETE CASCADE;
INSERT INTO maintenance_task (nid, maximum_concurrent_execution_count)
    VALUES ('send_user_email', 2);
"""

CONCURRENCY = "SELECT maximum_concurrent_execution_count FROM maintenance_task WHERE nid = %(task)s"

ACTIVE = """
SELECT mte1.instruction
FROM maintenance_task mt1
INNER JOIN maintenance_task_execution mte1 ON mte1.maintenance_task_id = mt1.id
WHERE mt1.nid = %(task)s AND mte1.ended_at IS NULL
"""

# The claim and its record in one statement, so that no crash can come between them. ARRAY, because
# the planner may run a bare sub-select more than once, and then it claims more than its LIMIT.
CLAIM = """
WITH claimed AS (
    UPDATE user_account AS ua2 SET email_sent_at = now()
    WHERE ua2.id = ANY (ARRAY(
        SELECT ua1.id FROM user_account ua1
        WHERE ua1.email_sent_at IS NULL AND ua1.id != ALL (%(active)s::integer[])
        ORDER BY ua1.id LIMIT %(limit)s FOR UPDATE OF ua1 SKIP LOCKED
    ))
    RETURNING ua2.id
)
INSERT INTO maintenance_task_execution (
    maintenance_task_id, instruction, state, hostname, started_at, last_seen_at
)
SELECT mt.id, claimed.id, 'RUNNING', %(hostname)s, now(), now()
FROM claimed, maintenance_task mt WHERE mt.nid = %(task)s ORDER BY claimed.id
RETURNING id, instruction
"""

SEEN = "UPDATE maintenance_task_execution SET last_seen_at = now() WHERE id = %(execution)s"

# Only what has not ended: a worker that was given up changes nothing any more.
END = """
UPDATE maintenance_task_execution
SET state = 'COMPLETED', ended_at = now(), error = to_jsonb(%(error)s::text)
WHERE id = %(execution)s AND ended_at IS NULL
"""

# Claims that could not be delivered, whose worker is gone, or that take too long: claimable again.
GIVE_BACK = """
WITH lost AS (
    UPDATE maintenance_task_execution mte SET
        state = 'COMPLETED', ended_at = now(), terminated_at = now(),
        terminated_reason = CASE
            WHEN mte.id = ANY (%(executions)s::integer[]) THEN 'released'
            WHEN last_seen_at < now() - %(lost)s * interval '1 second' THEN 'not seen any more'
            ELSE 'took too long'
        END
    FROM maintenance_task mt
    WHERE mt.id = mte.maintenance_task_id AND ended_at IS NULL AND (
        mte.id = ANY (%(executions)s::integer[])
        OR last_seen_at < now() - %(lost)s * interval '1 second'
        OR started_at < now() - mt.maximum_execution_duration
    )
    RETURNING instruction
)
UPDATE user_account SET email_sent_at = NULL
FROM lost WHERE user_account.id = lost.instruction::integer RETURNING user_account.id
"""

LEFT = """
SELECT (SELECT count(*) FROM user_account WHERE email_sent_at IS NULL)
     + (SELECT count(*) FROM maintenance_task_execution WHERE ended_at IS NULL)
"""

ENDED = """
SELECT instruction, error FROM maintenance_task_execution
WHERE terminated_at IS NULL ORDER BY instruction
"""


class Callbacks:
    """What Planton asks for. The plain functions block, so it calls them in worker threads."""

    def __init__(self, url: str) -> None:
        self._url = url

    def execute(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url) as connection:
            cursor = connection.execute(statement, {"task": TASK, **parameters})
            return cursor.fetchall() if cursor.description else []

    def get_active_instructions(self, task_name: str) -> list[str]:
        return [instruction for (instruction,) in self.execute(ACTIVE)]

    def schedule(self, request: ScheduleRequest) -> list[Claim]:
        rows = self.execute(
            CLAIM,
            active=list(request.active_instructions),
            limit=request.limit,
            hostname=socket.gethostname(),
        )
        return [Claim(instruction=name, receipt=str(execution)) for execution, name in rows]

    def release(self, claims: Sequence[Claim]) -> None:
        """Take back what could not be delivered."""
        self.give_back([int(claim.receipt or 0) for claim in claims])

    def give_back(self, executions: Sequence[int]) -> bool:
        """Make these claimable again, and those that nobody works on any more; tell if any was."""
        return bool(self.execute(GIVE_BACK, executions=list(executions), lost=LOST))

    async def concurrency(self) -> int:
        """Ask at every attempt, so that it can be changed in psql."""
        ((count,),) = await trio.to_thread.run_sync(self.execute, CONCURRENCY)
        return int(count)

    async def rescue(self, planton: Planton, *, task_status: "trio.TaskStatus[None]") -> None:
        """Run beside the attempts, as a service."""
        task_status.started()
        while True:
            if await trio.to_thread.run_sync(self.give_back, []):
                planton.wake(TASK)
            await trio.sleep(LOST / 10)

    def planton(self, count_active: Callable[[str], list[str]]) -> Planton:
        task = Task(
            name=TASK,
            get_active_instructions=count_active,
            schedule=self.schedule,
            release=self.release,
            concurrency=self.concurrency,
            # As in the npm example, in seconds, and with the Math.min that was meant.
            delay=delays.linear(initial=0.1, step=1, maximum=60),
        )
        return Planton(tasks=[task], services=[self.rescue])


async def with_callbacks(url: str) -> str:
    own = Callbacks(in_schema(url, "with_callbacks", SCHEMA))
    in_thread = trio.to_thread.run_sync
    both_have_counted = threading.Barrier(2)

    def count_together(task_name: str) -> list[str]:
        active = own.get_active_instructions(task_name)
        both_have_counted.wait()
        return active

    async def heartbeat(receipt: str) -> None:
        await in_thread(partial(own.execute, SEEN, execution=int(receipt)))

    async def end(receipt: str, error: str | None) -> None:
        await in_thread(partial(own.execute, END, execution=int(receipt), error=error))
        planton.wake(TASK)  # a slot is free

    async def count_left() -> int:
        ((count,),) = await in_thread(own.execute, LEFT)
        return int(count)

    work = Work(heartbeat, end, count_left)
    await work.attempt_together(own.planton(count_together), own.planton(count_together))
    show_active(await in_thread(own.get_active_instructions, TASK))
    planton = own.planton(own.get_active_instructions)
    planton.on(InstructionEvent, work.publish)
    await work.dispatch(planton)
    ended = await in_thread(own.execute, ENDED)
    errors = [f"; account {account}: {error}" for account, error in ended if error]
    return f"sent {len(ended) - len(errors)} of 8, cap {planton.status()[0].cap}{''.join(errors)}"


# ----------------------------------------------------------------------------- with the adapter

# What is active, since when and for how long, whose it is, and what came of it, is kept in tables
# of the adapter's, and in the same transaction.
CLAIM_ONLY = """
UPDATE user_account SET email_sent_at = %(now)s
WHERE id = ANY (ARRAY(
    SELECT id FROM user_account WHERE email_sent_at IS NULL
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
RETURNING id
"""


async def with_adapter(url: str) -> str:
    url = in_schema(url, "with_adapter", "")
    async with PostgresStorage(url) as storage, PostgresStorage(url) as other:
        await storage.migrate()

        def make_planton(storage: PostgresStorage) -> Planton:
            task = storage.claim_task(
                TASK, sql=CLAIM_ONLY, concurrency=2, lease=LOST, retries=1, delay=0.1
            )
            return Planton(tasks=[task], storages=[storage])  # serve: a free slot wakes it

        async def end(receipt: str, error: str | None) -> None:
            await (storage.fail(receipt, error) if error else storage.complete(receipt))

        async def count_left() -> int:
            (stats,) = await storage.stats()
            return 8 - stats.succeeded

        work = Work(storage.heartbeat, end, count_left)
        planton = make_planton(storage)
        await work.attempt_together(planton, make_planton(other))
        show_active(await storage.get_active_instructions(TASK))
        await work.dispatch(planton)
        return f"sent {8 - await count_left()} of 8, cap {planton.status()[0].cap}"


# ----------------------------------------------------------------------------- the same in both


def in_schema(url: str, name: str, tables: str) -> str:
    """Make a schema with the tables, if it is not there; give a URL that leads into it."""
    with psycopg.connect(url) as connection:
        if connection.execute("SELECT to_regnamespace(%s)", [name]).fetchone() == (None,):
            connection.execute(f"CREATE SCHEMA {name}; SET search_path TO {name}")
            connection.execute(ACCOUNTS + tables)
    return make_conninfo(url, options=f"-csearch_path={name}")


def show_active(active: list[str]) -> None:
    print(f"  two dispatchers at the same moment: {len(active)} active, concurrency 2", flush=True)


def show_dispatched(event: InstructionEvent) -> None:
    again = f", delivery {event.delivery}" if event.delivery > 1 else ""
    print(f"  dispatched {event.instruction}{again}", flush=True)


@attrs.frozen
class Work:
    """Workers behind a message queue, here a channel; all that they need is in the JSON."""

    heartbeat: Callable[[str], Awaitable[object]]
    end: Callable[[str, str | None], Awaitable[None]]
    count_left: Callable[[], Awaitable[int]]
    queue: Any = attrs.field(factory=lambda: trio.open_memory_channel[str](math.inf))

    def publish(self, event: InstructionEvent) -> None:
        self.queue[0].send_nowait(event.to_json())

    async def attempt_together(self, *dispatchers: Planton) -> None:
        async with trio.open_nursery() as nursery:
            for planton in dispatchers:
                planton.on(InstructionEvent, self.publish)
                nursery.start_soon(planton.attempt, TASK)

    async def dispatch(self, planton: Planton) -> None:
        """Dispatch until nothing is left."""
        planton.on(InstructionEvent, show_dispatched)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.consume, nursery)
            async with planton:
                while await self.count_left():
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    async def consume(self, nursery: trio.Nursery) -> None:
        async for message in self.queue[1]:
            nursery.start_soon(self.send_email, InstructionEvent.from_json(message))

    async def send_email(self, event: InstructionEvent) -> None:
        receipt = event.receipt
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keep_alive, receipt)
            await trio.sleep(SECONDS)  # the mail server
            nursery.cancel_scope.cancel()
        is_full = event.instruction == "8" and event.delivery == 1
        await self.end(receipt, "mailbox full" if is_full else None)

    async def keep_alive(self, receipt: str) -> None:
        while True:
            await trio.sleep(LOST / 10)
            await self.heartbeat(receipt)


async def main(url: str) -> None:
    print("With callbacks:")
    print(" ", await with_callbacks(url))
    print("With the adapter:")
    print(" ", await with_adapter(url))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/npm_planton.py postgresql://user@host/database")
    trio.run(main, sys.argv[1])
