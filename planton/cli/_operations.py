"""The commands on a storage."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import click

from planton.cli import _types
from planton.cli._fleet import explain_task, stop_all
from planton.cli._output import Output, found_row, span, to_json
from planton.cli._status import show_status, watch_status
from planton.cli._storage import check_known, confirm, confirm_unknown, operation, yes_option
from planton.cli._types import LARGEST, duration, json_value, moment, text, whole
from planton.storage import Status

ENDED = ("succeeded", "failed", "dead")
task_argument = click.argument("task_name", metavar="TASK", type=text)


@operation(create=True)
async def migrate(storage: Any, output: Output) -> None:
    """Bring Planton's tables up to date.

    A SQLite file that is not there is made. Several processes may do so at once.
    """
    applied = await storage.migrate()
    plural = "" if applied == 1 else "s"
    told = f"applied {applied} migration{plural}" if applied else "the tables are up to date"
    output.tell(told, applied=applied)


@operation(create=True, is_opened=False)
async def schema(storage: Any, output: Output) -> None:  # noqa: ASYNC124  as all operations
    """Print the SQL of Planton's tables, for those who apply it themselves.

    It is all that `planton migrate` does on an empty database. Nothing is connected to.
    """
    sql = storage.schema()
    output.echo(to_json({"schema": sql}) if output.is_json else sql)


@operation()
@task_argument
@click.argument("instruction", type=text)
@click.option("--payload", type=json_value, metavar="JSON", help="What consumers get with it.")
@click.option("--priority", type=whole(-LARGEST), default=0, help="High ones are claimed first.")
@click.option(
    "--run-at", type=moment, metavar="TIME", help="When it is due, like 2030-12-31T18:00:00+01:00."
)
@click.option("--in", "run_in", type=duration, help="When it is due, like 30m from now.")
@click.option(
    "--tag", "tags", multiple=True, type=text, metavar="TEXT", help="What a task must offer."
)
@click.option("--retries", type=whole(0), default=0, help="How often it is tried again.")
@click.option("--timeout", type=duration, help="How long one delivery may take.")
@click.option("--partition", metavar="TEXT", default="", help="Whose work it is.")
@yes_option
async def enqueue(
    storage: Any,
    output: Output,
    task_name: str,
    instruction: str,
    run_at: datetime | None,
    run_in: float | None,
    is_sure: bool,
    **options: Any,
) -> None:
    """Queue an instruction for a task.

    Nothing changes if it is queued already. A task that the storage does not know is asked about.
    """
    if run_in is not None:
        if run_at is not None:
            raise click.UsageError("--run-at and --in: give one of them")
        run_at = datetime.now(UTC) + timedelta(seconds=run_in)
    await confirm_unknown(storage, task_name, is_sure=is_sure)
    is_new = await storage.enqueue(task_name, instruction, run_at=run_at, **options)
    told = "queued" if is_new else "it was queued already"
    output.tell(told, task_name=task_name, instruction=instruction, queued=is_new)


@operation()
@task_argument
async def explain(storage: Any, output: Output, task_name: str) -> None:
    """Tell why a task was or was not dispatched.

    By each dispatcher: its last decisions. They are as old as it says there: some seconds, up to a
    minute if a task only looked again, or longer with thousands of busy tasks.
    """
    await check_known(storage, task_name)
    await explain_task(storage, output, task_name)


@operation()
@click.option(
    "--timeout",
    type=duration,
    default="60s",
    show_default=True,
    help="How long to wait; more than the grace period of the dispatchers.",
)
async def stop(storage: Any, output: Output, timeout: float) -> int:
    """Ask every dispatcher to terminate, and wait for them.

    Each hears of it within five seconds, hands over what it has claimed, and ends. One that
    begins later is not asked; whatever starts dispatchers again has to be told, too.
    """
    return await stop_all(storage, output, timeout)


@operation()
@click.option("--status", type=click.Choice(get_args(Status)), help="Only of this status.")
@click.option("--task", "task_name", type=text, help="Only of this task.")
@click.option("--instruction", type=text, help="Only this instruction.")
@click.option("--older-than", type=duration, help="Only those that came to be that long ago.")
@click.option("--limit", type=whole(1), default=100, show_default=True, help="How many at most.")
async def find(
    storage: Any, output: Output, limit: int, task_name: str | None, **filters: Any
) -> None:
    """List instructions, the oldest first.

    Columns with nothing in them are left out; long payloads, results and errors are shortened on a
    terminal; --json has all there is. A terminal that is too narrow for the table shows a block for
    each instruction.
    """
    if task_name is not None:
        await check_known(storage, task_name)
    found = await storage.find(limit=limit, task_name=task_name, **filters)
    table = output.table(found_row(output, each) for each in found)
    output.tell(table or "nothing found", instructions=found)
    if len(found) == limit:
        click.echo(f"These are the first {limit}: give a higher --limit for more.", err=True)


@operation()
@task_argument
@click.argument("instructions", metavar="[INSTRUCTION]...", nargs=-1, type=text)
async def retry(
    storage: Any, output: Output, task_name: str, instructions: tuple[str, ...]
) -> None:
    """Queue ended instructions of a task again.

    Those that are named, or all that failed or are dead.
    """
    await check_known(storage, task_name)
    count = await storage.retry(task_name, instructions or None)
    output.tell(f"queued {count} again", task_name=task_name, retried=count)


@operation()
@task_argument
@yes_option
async def pause(storage: Any, output: Output, task_name: str, is_sure: bool) -> None:
    """Let no dispatcher claim for a task, until `resume`."""
    await confirm_unknown(storage, task_name, is_sure=is_sure)
    await storage.pause(task_name)
    output.tell(f"{task_name} is paused", task_name=task_name, paused=True)


@operation()
@task_argument
async def resume(storage: Any, output: Output, task_name: str) -> None:
    """Let dispatchers claim for a task again."""
    await check_known(storage, task_name)
    await storage.resume(task_name)
    output.tell(f"{task_name} is not paused", task_name=task_name, paused=False)


@operation("set-concurrency")
@task_argument
@click.argument("concurrency", metavar="N|default", type=_types.concurrency)
@yes_option
async def set_concurrency(
    storage: Any, output: Output, task_name: str, concurrency: int | None, is_sure: bool
) -> None:
    """Override the concurrency of a task, in the whole fleet.

    `default` goes back to what the code says.
    """
    await confirm_unknown(storage, task_name, is_sure=is_sure)
    await storage.set_concurrency(task_name, concurrency)
    is_now = "what the code says" if concurrency is None else concurrency
    told = f"the concurrency of {task_name} is {is_now}"
    output.tell(told, task_name=task_name, concurrency=concurrency)


@operation()
@task_argument
@click.argument("instructions", metavar="[INSTRUCTION]...", nargs=-1, type=text)
@yes_option
async def drop(
    storage: Any, output: Output, task_name: str, instructions: tuple[str, ...], is_sure: bool
) -> None:
    """Delete queued instructions of a task.

    Those that are named, or all; what is running goes on, and the history does not tell of them.
    """
    await check_known(storage, task_name)
    if not (instructions or is_sure):
        confirm(f"this deletes all that is queued for {task_name!r}")
    count = await storage.drop(task_name, instructions or None)
    rest = f" of {len(instructions)}: no other is queued" if count < len(instructions) else ""
    output.tell(f"dropped {count}{rest}", task_name=task_name, dropped=count)


@operation()
@click.option(
    "--older-than",
    type=duration,
    required=True,
    help="Only what ended that long ago, like 7d; 0 for all.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(ENDED),
    multiple=True,
    default=["succeeded"],
    show_default=True,
    help="Only what ended so; may be given several times.",
)
@yes_option
async def prune(
    storage: Any, output: Output, older_than: float, statuses: tuple[str, ...], is_sure: bool
) -> None:
    """Delete ended instructions from the history.

    What failed or is dead only if --status says so.
    """
    if not is_sure:
        ended = f" and ended more than {span(older_than)} ago" if older_than else ""
        confirm(f"this deletes from the history all that is {' or '.join(statuses)}{ended}")
    count = await storage.prune(older_than, status=statuses)
    output.tell(f"deleted {count} from the history", pruned=count)


@operation()
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--interval", type=duration, default="2s", show_default=True, help="How often --watch looks."
)
async def status(storage: Any, output: Output, watch: bool, interval: float) -> None:
    """Show tasks, dispatchers, and what they say of their tasks."""
    if watch:
        await watch_status(storage, output, max(interval, 0.1))
    else:
        await show_status(storage, output)
