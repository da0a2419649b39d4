"""The group of commands: its list of them, and every error as a terminal may show it."""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from planton.cli._exits import FAILED, SIGNAL
from planton.cli._shown import printable_lines, without_those_of


class Commands(click.Group):
    """Prints errors without passwords, also without those of an argument that was misread."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run the command that `args` are, and exit."""
        given = sys.argv[1:] if args is None else list(args)
        try:
            sys.exit(super().main(given, *rest, **{**options, "standalone_mode": False}))
        except click.ClickException as error:
            text = io.StringIO()
            error.show(text)
            _exit(error.exit_code, text.getvalue(), given)
        except click.Abort:
            _exit(SIGNAL + 2, "\n", given)
        except Exception:
            _exit(FAILED, traceback.format_exc(), given)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """List the commands with their whole summaries, on as many lines as they need."""
        rows = [(name, command.get_short_help_str(1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


def _exit(code: int, text: str, given: Sequence[str]) -> NoReturn:
    known = [*given, *map(os.environ.get, ("PLANTON_STORAGE",))]
    click.echo(printable_lines(without_those_of(filter(None, known), text)), err=True, nl=False)
    sys.exit(code)
