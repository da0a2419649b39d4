"""The command line as a user calls it: real processes, exit codes, what is printed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


class Command:
    """Runs `planton` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", "from planton.cli import main; main()", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    def wait_until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "waited for too long"
            signal.sigtimedwait([], 0.005)

    return wait_until
