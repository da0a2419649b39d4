"""README and docs are executed: scripts as scripts, `>>>` lines as doctests."""

import doctest
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Pages that need a server are run by tests/postgres, which has one.
ALL_PAGES = sorted(ROOT.glob("docs/*.md"))
PAGES = [page for page in ALL_PAGES if "DATABASE_URL" not in page.read_text()]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def scripts(page: Path) -> list[str]:
    return [block for block in _BLOCK.findall(page.read_text()) if not block.startswith(">>>")]


# A page that hangs says where.
_STACKS = "import faulthandler; faulthandler.dump_traceback_later(50, exit=True)\n"


def run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _STACKS + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_scripts_of_a_page_run(page, tmp_path):
    """All of them, one after the other, in an empty folder."""
    done = run("\n".join(scripts(page)), tmp_path)

    assert (0, "") == (done.returncode, done.stderr), done.stderr


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_the_sessions_of_a_page_are_true(page):
    """What stands behind `>>>` prints what stands below."""
    failed, _ = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)

    assert 0 == failed


def test_the_example_of_the_readme_dispatches_from_a_users_table(tmp_path):
    """Until Ctrl-C, which ends it without a word; every account is welcomed once."""
    connection = sqlite3.connect(tmp_path / "app.db")
    columns = "id INTEGER PRIMARY KEY, claimed_at, sent_at"
    connection.execute(f"CREATE TABLE user_account ({columns})")
    connection.executemany("INSERT INTO user_account (id) VALUES (?)", [(n,) for n in range(1, 6)])
    connection.commit()
    connection.close()
    example = scripts(ROOT / "README.md")[0]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", example],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)

    assert [f"Welcome, account {n}\n" for n in range(1, 6)] == sorted(lines)
    assert (("", ""), 0) == (rest, process.returncode)
    connection = sqlite3.connect(tmp_path / "app.db")
    unsent = "SELECT count(*) FROM user_account WHERE sent_at IS NULL"
    assert (0,) == connection.execute(unsent).fetchone()
    assert [("succeeded", 5)] == connection.execute(
        "SELECT status, count(*) FROM planton_ended GROUP BY status"
    ).fetchall()
    connection.close()


def test_the_example_with_callbacks_of_ones_own_runs_to_its_end(tmp_path):
    """No database needed."""
    done = run(scripts(ROOT / "README.md")[1], tmp_path)

    assert (0, "") == (done.returncode, done.stderr), done.stderr
    assert [f"Welcome, account {n}" for n in range(1, 4)] == done.stdout.splitlines()


def test_the_first_example_of_the_readme_stands_at_its_top():
    """Code by line 30, in about twenty lines."""
    lines = (ROOT / "README.md").read_text().splitlines()

    assert lines.index("```python") < 10
    assert lines.index("```") <= 31


def test_all_links_between_pages_lead_somewhere(linked):
    """No page promises another that is not there."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ALL_PAGES]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert linked(page, target).exists(), f"{page.name} -> {target}"
