"""The pages that need PostgreSQL, and the demo, as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    page
    for page in sorted(DOCS.glob("*.md"))
    if "DATABASE_URL" in (text := page.read_text()) and "```python\n" in text
]


@pytest.fixture
def run(tmp_path, postgres_dsn):
    def run(code, *arguments, **environment):
        variables = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def url(dsn):
    """The same database as a URL, as people write it."""
    with psycopg.connect(dsn) as connection:
        info = connection.info
        host = info.host.replace("/", "%2F")
        return f"postgresql://{info.user}@/{info.dbname}?host={host}&port={info.port}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_scripts_of_a_page_run(run, postgres_dsn, page):
    """All of them, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    done = run("\n".join(blocks), DATABASE_URL=postgres_dsn)

    assert (0, "") == (done.returncode, done.stderr)


def test_the_demo_works_as_on_sqlite(run, postgres_dsn, tmp_path):
    """Every account has its e-mail, also after the demo on SQLite; started again none is sent."""
    code = "from planton.cli import main; main()"
    arguments = ("demo", "--storage", url(postgres_dsn), "--accounts", "50")
    run(code, "demo", "--accounts", "60")
    first, again = run(code, *arguments), run(code, *arguments)

    assert (0, "", 0) == (first.returncode, first.stderr, again.returncode)
    assert re.search(r"sent +\S 50 ", first.stdout)
    assert re.search(r"sent +\S 0 ", again.stdout)
    (outbox,) = tmp_path.glob("planton-demo-?*-outbox")
    assert 50 == len(list(outbox.glob("*.eml")))


def test_a_server_that_cannot_be_reached_is_told_in_one_line(run):
    """Without the password, with exit code 2."""
    code = "from planton.cli import main; main()"
    done = run(code, "demo", "--storage", "postgresql://me:secret@127.0.0.1:1/app")

    assert 2 == done.returncode
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert "127.0.0.1" in done.stderr
