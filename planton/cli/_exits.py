"""Exit codes, and mistakes told in one line instead of a traceback."""

import traceback

import click

EXIT_CODES = """\b
Exit codes:
  0    ended, or terminated by a signal within the grace period
  1    something failed while it ran
  2    a mistake in what was asked for, or a storage that cannot be used
  3    the grace period was over before all was handed over
  4    a dispatcher has not stopped in time (planton stop)
  130  stopped by SIGINT before it was done (143: by SIGTERM)
"""
FAILED, MISTAKE, UNDELIVERED, STILL_RUNNING, SIGNAL = 1, 2, 3, 4, 128


class Mistake(click.ClickException):
    """Something that the user can mend; shown without a traceback."""

    exit_code = MISTAKE


def place(error: BaseException) -> str:
    """Say where an exception was raised: file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "unknown place"
