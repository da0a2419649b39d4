"""What a page shows of a terminal is what a terminal shows; its programs are the examples."""

import doctest
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXCERPT = re.compile(r"^```python (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXAMPLE = re.compile(r"\]\(\.\./examples/(\w+)/\)")
PAGES = [page for page in sorted(ROOT.glob("docs/*.md")) if _CONSOLE.search(page.read_text())]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
END = "--- end of the output ---"
# What only looks is looked at again until it shows what the page says: a dispatcher needs its time.
LOOKS = ("planton status", "planton find", "planton explain", "cat ", "curl ")
# Stands in for `pip install`: all that a page has it install is installed here, extras included.
_PIP = """
import sys
from importlib.metadata import distribution
from packaging.requirements import Requirement
assert sys.argv[1:3] == ["install", "-q"]
for one in map(Requirement, sys.argv[3:]):
    extras = distribution(one.name).metadata.get_all("Provides-Extra") or []
    assert one.extras <= set(extras), f"{one}: it has {extras}"
"""


class Shell:
    """A shell that is told one command after the other."""

    def __init__(self, folder: Path, **environment: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**os.environ, "PATH": path, "NO_COLOR": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self(f'pip() {{ {shlex.join([sys.executable, "-c", _PIP])} "$@"; }}')

    def __call__(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The exit code of the command is still there for the next one; its last line may be open.
        self._process.stdin.write(f"{command}\n__code=$?; echo; echo '{END}'; (exit $__code)\n")
        self._process.stdin.flush()
        return "".join(iter(self._process.stdout.readline, f"{END}\n"))

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def shell(request, tmp_path):
    """A shell in a folder with the files and the example programs of the page."""
    page = request.param.read_text()
    if "$ curl " in page and shutil.which("curl") is None:
        pytest.skip("there is no curl: apt-get install curl")
    for name, content in _FILE.findall(page):
        (tmp_path / name).write_text(content)
    for name in _EXAMPLE.findall(page):
        shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    environment = {}
    if "DATABASE_URL" in page:
        environment["DATABASE_URL"] = request.getfixturevalue("postgres_url")
    shell = Shell(tmp_path, **environment)
    yield shell
    shell.close()


@pytest.fixture
def port():
    """One that is free, where pages say 8000."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def commands(page: str) -> list[tuple[str, str]]:
    """Give each command with what it is to print."""
    told = "".join(_CONSOLE.findall(page)).removeprefix("$ ")
    return [tuple(each.partition("\n")[::2]) for each in told.split("\n$ ")]


@pytest.mark.parametrize(
    ("page", "shell"),
    [(page, page) for page in PAGES],
    ids=[page.stem for page in PAGES],
    indirect=["shell"],
)
def test_the_consoles_of_a_page_are_true(page, shell, port):
    """All commands, one after the other."""
    for command, expected in commands(page.read_text().replace("8000", port)):
        deadline = time.monotonic() + 40 * command.startswith(LOOKS)
        expected = f"{expected.rstrip()}\n".lstrip("\n")
        while not doctest.OutputChecker().check_output(expected, got := shell(command), FLAGS):
            assert time.monotonic() < deadline, f"$ {command}\n{got}--- instead of\n{expected}"
            signal.sigtimedwait([], 0.2)


EXCERPTS = [
    (page.stem, name, excerpt)
    for page in sorted(ROOT.glob("docs/*.md"))
    for name, excerpt in _EXCERPT.findall(page.read_text())
    if "/" in name  # a file of an example
]


@pytest.mark.parametrize(("page", "name", "excerpt"), EXCERPTS)
def test_what_a_page_shows_of_an_example_is_in_it(page, name, excerpt):
    """Line by line."""
    assert f"\n{excerpt}" in (ROOT / "examples" / name).read_text()
