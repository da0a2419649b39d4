"""`Task(lock=advisory_lock(…))`: one dispatcher of the fleet at a time counts and claims."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, TypeAlias

from planton import StorageError
from planton_postgres._driver import TrioConnection
from planton_postgres._errors import name_of, translated
from planton_postgres._statements import Statements

Locked: TypeAlias = "TrioConnection[Any] | Literal[False]"


def advisory_lock(conninfo: str) -> Callable[[str], AbstractAsyncContextManager[Locked]]:
    """Return a lock for `Task(lock=…)`: an advisory lock of PostgreSQL's, one for each task.

    For callbacks of your own, whatever database their rows are in. It lasts as long as a
    transaction, on a connection that is made for each attempt; so it works behind PgBouncer, and
    the server frees it when the process or its connection dies. Entering yields that connection,
    `request.context`: what a callback does with it is committed when the lock is left. It yields
    False while another dispatcher is within; the attempt then ends as locked, and comes again soon.

    A lock that is lost in the middle is an error when it is left. Then all that was done with its
    connection is undone, and what the attempt claimed by other ways is released, or counted anew.

    Args:
        conninfo: Of the server; the database need not be that of the rows, but the same for all.

    Raises:
        InvalidArgumentError: If it is none.
        StorageError: When entered or left, if the server cannot be reached, or the lock was lost.
    """
    name, sql = name_of(conninfo), Statements()

    @asynccontextmanager
    async def lock(task_name: str) -> AsyncGenerator[Locked, None]:
        with translated(name):
            async with await TrioConnection.connect(conninfo) as connection:
                await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                cursor = await connection.execute(sql["lock_task"], {"task_name": task_name})
                ((is_locked,),) = await cursor.fetchall()
                if not is_locked:
                    yield False
                    return
                yield connection
                ended = await connection.execute("COMMIT")
                if ended.statusmessage != "COMMIT":
                    raise StorageError(name, "the lock's transaction had failed and was undone")

    return lock
