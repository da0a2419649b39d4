"""Commands on a storage: its URL, `--json`, and what they have in common."""

import functools
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import click
import trio

from planton.cli._exits import EXIT_CODES, Mistake
from planton.cli._output import Output
from planton.cli._plugins import URLS, storage_at
from planton.cli._shown import printable

VARIABLE = "PLANTON_STORAGE"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NEGATIVE = re.compile(r"-\d+")


class StorageCommand(click.Command):
    """Takes the URL of a storage as its first argument, as `--storage`, or from the environment."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the URL, too."""
        options, *arguments = super().collect_usage_pieces(ctx)
        return [options, "[URL]", *arguments]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the URL out, if the first argument is one; no task is called like one."""
        given = list(args)
        try:
            return super().parse_args(ctx, self._with_url_as_option(ctx, args))
        except click.UsageError as error:
            hint = _hint(error, given)
            raise click.UsageError(f"{error.format_message()}{hint}", ctx) from error

    def _with_url_as_option(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [each for each in self.params if isinstance(each, click.Option)]
        parser = click.Command(None, params=[*options]).make_parser(ctx)
        given, others, _ = parser.parse_args([*args])
        first = others[0] if others else ""
        if _URL.match(first):
            if "url" in given:
                raise click.UsageError("the storage is given twice: as an argument, as --storage")
            place = args.index(first)
            return ["--storage", first, *args[:place], *args[place + 1 :]]
        if first and len(options) == len(self.params):
            # Not what it is: it may hold a password.
            raise click.UsageError(f"the first argument is no storage URL: {URLS}", ctx)
        return args


def _hint(error: click.UsageError, args: list[str]) -> str:
    """Say what is likely meant, where the words of the parser do not."""
    if isinstance(error, click.NoSuchOption) and any(map(_NEGATIVE.fullmatch, args)):
        return " No concurrency is below 1; a name that begins with a dash goes behind `--`."
    if "extra argument" in error.format_message() and any(map(_URL.match, args)):
        return " The URL of the storage goes first."
    return ""


def operation(
    name: str | None = None, *, create: bool = False, is_opened: bool = True
) -> Callable[[Callable[..., Awaitable[int | None]]], click.Command]:
    """Make a command of an async function of the storage, the output and its own options.

    What the function returns is the exit code.
    """

    def decorate(function: Callable[..., Awaitable[int | None]]) -> click.Command:
        @functools.wraps(function)
        def command(url: str | None, is_json: bool, **options: Any) -> None:
            async def operate() -> int | None:
                storage = storage_at(_given(url), create=create)
                output = Output(is_json=is_json)
                async with storage if is_opened else nullcontext():
                    return await function(storage, output, **options)

            sys.exit(trio.run(operate) or 0)

        for option in (_json_option, _url_option):
            command = option(command)
        return click.command(name, cls=StorageCommand, epilog=EXIT_CODES)(command)

    return decorate


def _given(url: str | None) -> str:
    if not url:
        raise Mistake(
            f"which storage? give its URL as the first argument, or set {VARIABLE}: {URLS}"
        )
    return url


_url_option = click.option(
    "--storage",
    "url",
    metavar="URL",
    envvar=VARIABLE,
    show_envvar=True,
    help="The storage, such as sqlite:///app.db; may also be the first argument.",
)
_json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON, for programs.")


yes_option = click.option("--yes", "-y", "is_sure", is_flag=True, help="Ask nothing: for scripts.")


async def check_known(storage: Any, task_name: str) -> None:
    """Refuse the name of a task that the storage does not know; most likely it is misspelt."""
    if problem := await _unknown(storage, task_name):
        raise Mistake(problem)


async def confirm_unknown(storage: Any, task_name: str, *, is_sure: bool) -> None:
    """Ask before a task is used that the storage does not know, unless one `is_sure`."""
    if not is_sure and (problem := await _unknown(storage, task_name)):
        confirm(problem)


async def _unknown(storage: Any, task_name: str) -> str | None:
    known = {each.task_name for each in await storage.stats()}
    # A task that claims rows of the user's own has no row of its own as long as there are none.
    known.update(each.status.name for each in await storage.decisions())
    if task_name in known:
        return None
    names = ", ".join(map(repr, sorted(known)[:10])) or "none"
    return f"the storage knows no task {task_name!r}; those it knows: {names}"


def confirm(fact: str) -> None:
    if not sys.stdin.isatty():
        raise Mistake(f"{fact}; give --yes if that is meant")
    if not click.confirm(f"{printable(fact)}. Go on?", err=True):
        raise Mistake("nothing was changed")
