"""The commands and their options; what they do is in the modules beside this one."""

import logging
from urllib.parse import quote

import click

from planton.cli import _operations
from planton.cli._exits import EXIT_CODES
from planton.cli._group import Commands
from planton.cli._plugins import storage_at
from planton.cli._shown import Formatter


@click.group(
    cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="planton")
def planton() -> None:
    """Dispatch work from a database, and look after it."""


for _command in vars(_operations).values():
    if isinstance(_command, click.Command):
        planton.add_command(_command)


@planton.command(epilog=EXIT_CODES)
@click.option(
    "--database",
    type=click.Path(dir_okay=False),
    default="planton-demo.db",
    show_default=True,
    help="SQLite file; made if it is not there. The e-mails go to a folder beside it, which is "
    "called after it.",
)
@click.option(
    "--accounts",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="How many user accounts there are.",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Another storage than that file: postgresql://user@host/database. The e-mails go to a "
    "folder in the current one, which is called after host and database.",
)
def demo(database: str, accounts: int, storage: str | None) -> None:
    """Send a welcome e-mail to every account of a database.

    The accounts are claimed straight from their table, 20 at a time; a consumer writes each e-mail
    as an .eml file. Interrupted, even by SIGKILL, and started again it goes on where it stopped
    and sends nothing twice.
    """
    from planton.cli._run import load, run_target

    opened = storage_at(storage or f"sqlite:///{quote(database)}", create=True)
    send = load("planton_executor.demo:demo")
    run_target("planton demo", lambda: send(opened, accounts))


@planton.command(epilog=EXIT_CODES)
@click.argument("target", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--log-level", default="INFO", show_default=True, help="Of the standard library's logging."
)
def run(target: str, log_level: str) -> None:
    """Run a Planton object, given as MODULE:ATTRIBUTE.

    The attribute may also be a function that returns one, an async function, or a function that
    returns an async context manager of one (`@asynccontextmanager`, to open a storage around it).
    The module is looked for in the current folder, too.

    SIGINT and SIGTERM terminate within the grace period; a second signal stops at once.
    """
    from planton.cli._run import load, run_target

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    try:
        logging.basicConfig(level=log_level.upper(), handlers=[handler])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--log-level") from error
    run_target(target, load(target))
