"""Text for people: without passwords, and without characters that steer a terminal."""

import json
import logging
import re
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any
from urllib.parse import unquote

_IN_URL = re.compile(r"(:/+[^\s:/@]*:)\S+(?=@)")
_AS_VALUE = re.compile(r"(pass(?:word|wd)\s*=\s*)('(?:\\.|[^'\\])*'|[^\s&'\"]+)", re.IGNORECASE)
# In an argument all is searched that may be meant, also if it is not well formed.
_GIVEN = re.compile(
    r":/*[^:@/]*:(.*)@|pass(?:word|wd)\s*=\s*('(?:\\.|[^'\\])*'|\S+)", re.DOTALL | re.IGNORECASE
)
# Shorter parts of a password are also parts of other words.
_LEAST = 3
HIDDEN = "***"


def printable(text: str) -> str:
    """Return a text of one line: control and bidi characters escaped, passwords hidden."""
    return escaped(without_passwords(text))


def printable_lines(text: str) -> str:
    """Return a text of several lines, each `printable`."""
    return "\n".join(map(escaped, without_passwords(text).split("\n")))


def escaped(text: str) -> str:
    r"""Return a text with every character escaped, as in JSON, that a terminal may obey.

    Examples:
        >>> print(escaped("a" + chr(27) + "[31m" + chr(0x202E) + "b"))
        a\u001b[31m\u202eb
    """
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def without_passwords(text: str) -> str:
    """Return a text without the passwords of URLs and connection strings in it.

    Examples:
        >>> without_passwords("postgresql://joe:a@b/c@db/app and host=db password='a b'")
        'postgresql://joe:***@db/app and host=db password=***'
    """
    return _AS_VALUE.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}", text))


def without_those_of(given: Iterable[str], text: str) -> str:
    """Return a text also without passwords that are in what was `given`, nor parts of them.

    A URL that is misread has them in other places: `a@b` is a password and a host then.
    """
    secrets = {secret for each in given for secret in _secrets(each) if secret}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_passwords(text)


def _secrets(given: str) -> Iterator[str]:
    for found in filter(None, chain.from_iterable(_GIVEN.findall(given))):
        for secret in (found, found.strip("'"), unquote(found)):
            yield from (secret, repr(secret)[1:-1])
            yield from (part for part in re.split(r"[@/:?#&\s]", secret) if len(part) >= _LEAST)


def wrapped(text: str, width: int) -> str:
    """Return lines that fit `width`, where no word is broken; one that is too long is whole."""
    if len(text) <= width:
        return text
    margin = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


class Formatter(logging.Formatter):
    """Writes each message on one line; no text steers the terminal or shows a password."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return printable_lines(super().formatException(ei))
