"""The group of commands: its list of them, and every error as a terminal may show it."""

import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from planton._errors import PlantonError
from planton._failures import unwrapped
from planton.cli._exits import FAILED, MISTAKE, SIGNAL, Mistake
from planton.cli._shown import printable_lines, without_those_of, wrapped
from planton.cli._storage import VARIABLE


class Commands(click.Group):
    """Prints errors without passwords, also without those of an argument that was misread."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run the command that `args` are, and exit."""
        given = sys.argv[1:] if args is None else list(args)
        try:
            sys.exit(super().main(given, *rest, **{**options, "standalone_mode": False}))
        except click.ClickException as error:
            _exit(error.exit_code, _text_of(error), given)
        except click.Abort:
            _exit(SIGNAL + signal.SIGINT, "\n", given)
        except Exception as error:
            cause = unwrapped(error)
            if isinstance(cause, PlantonError):
                _exit(MISTAKE, _text_of(Mistake(str(cause))), given)
            _exit(FAILED, traceback.format_exc(), given)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; Ctrl-C ends it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(SIGNAL + signal.SIGINT)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """List the commands with their whole summaries, on as many lines as they need."""
        rows = [(name, command.get_short_help_str(1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


def _text_of(error: click.ClickException) -> str:
    """Return what click would print, in lines that fit the terminal."""
    shown = io.StringIO()
    error.show(shown)
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else sys.maxsize
    return "\n".join(wrapped(line, width) for line in shown.getvalue().split("\n"))


def _exit(code: int, text: str, given: Sequence[str]) -> NoReturn:
    known = [*given, os.environ.get(VARIABLE, "")]
    click.echo(printable_lines(without_those_of(known, text)), err=True, nl=False)
    sys.exit(code)
