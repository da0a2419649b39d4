"""The log of `planton run`."""

import logging
from typing import Any

from planton.cli._shown import printable, printable_lines


class Formatter(logging.Formatter):
    """Writes each message on one line; no text steers the terminal or shows a password."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return printable_lines(super().formatException(ei))
