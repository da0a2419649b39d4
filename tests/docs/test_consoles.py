"""What a page shows of a terminal is what a terminal shows."""

import doctest
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(ROOT.glob("docs/*.md")) if _CONSOLE.search(page.read_text())]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
END = "--- end of the output ---"
# What only looks is looked at again until it shows what the page says: a dispatcher needs its time.
LOOKS = ("planton status", "planton find", "planton explain", "cat ")


class Shell:
    """A shell that is told one command after the other."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**os.environ, "PATH": path, "NO_COLOR": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The exit code of the command is still there for the next one.
        self._process.stdin.write(f"{command}\n__code=$?; echo '{END}'; (exit $__code)\n")
        self._process.stdin.flush()
        return "".join(iter(self._process.stdout.readline, f"{END}\n"))

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def commands(page: str) -> list[tuple[str, str]]:
    """Give each command with what it is to print."""
    told = "".join(_CONSOLE.findall(page)).removeprefix("$ ")
    return [tuple(each.partition("\n")[::2]) for each in told.split("\n$ ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_consoles_of_a_page_are_true(page, shell, tmp_path):
    """All commands, one after the other, in a folder with the files of the page."""
    text = page.read_text()
    for name, content in _FILE.findall(text):
        (tmp_path / name).write_text(content)
    for command, expected in commands(text):
        deadline = time.monotonic() + 40 * command.startswith(LOOKS)
        expected = f"{expected.rstrip()}\n".lstrip("\n")
        while not doctest.OutputChecker().check_output(expected, got := shell(command), FLAGS):
            assert time.monotonic() < deadline, f"$ {command}\n{got}--- instead of\n{expected}"
            signal.sigtimedwait([], 0.2)
