"""What all tests share."""

import signal
import sqlite3
from collections.abc import Generator

import pytest
import trio


def pytest_report_header() -> str:
    return f"trio {trio.__version__}, SQLite {sqlite3.sqlite_version}"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Let SIGINT be heard, here and in child processes, even when started with it ignored.

    A shell ignores it for what it starts in the background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Show the one exception of a group instead of the group: asserts stay readable."""
    try:
        return (yield)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from None
