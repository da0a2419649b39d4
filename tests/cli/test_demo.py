"""`planton demo`."""

import re
import signal
import sqlite3
import subprocess
import sys
from urllib.parse import unquote

import pytest


def outbox(command, folder="planton-demo-outbox"):
    return sorted(path.name for path in (command.folder / folder).glob("*.eml"))


def summary(text):
    return dict(re.findall(r"[│|] ([a-z ]+?) +[│|] (\S+)", text))


def test_it_sends_an_e_mail_to_every_account(command):
    """To its summary; each e-mail is a file that names the account."""
    done = command("demo", "--accounts", "60")
    told = summary(done.stdout)

    assert (0, "") == (done.returncode, done.stderr)
    assert "60" == told["sent"]
    assert 1 <= int(told["most active at one time"]) <= 20
    assert int(told["attempts"]) >= 3
    assert float(told["seconds"]) > 0
    assert 60 == len(outbox(command))
    text = (command.folder / "planton-demo-outbox" / "account-7.eml").read_text()
    assert "To: User 7 <user7@example.com>" in text


def test_started_again_it_sends_nothing_twice(command):
    """And sends to the accounts that have come since."""
    command("demo", "--accounts", "5")
    again, more = command("demo", "--accounts", "5"), command("demo", "--accounts", "8")

    assert "0" == summary(again.stdout)["sent"]
    assert "3" == summary(more.stdout)["sent"]
    assert 8 == len(outbox(command))


def test_interrupted_it_finishes_what_is_claimed_and_goes_on_when_started_again(
    command, wait_until
):
    """SIGINT drains, and says how to go on."""
    process = command.start("demo", "--accounts", "600")
    wait_until(lambda: len(outbox(command)) > 20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    sent = int(summary(out)["sent"])

    assert 130 == process.returncode
    assert "goes on where it stopped" in err
    assert len(outbox(command)) == sent < 600
    with sqlite3.connect(command.folder / "planton-demo.db") as connection:
        assert [(0,)] == connection.execute("SELECT count(*) FROM planton_active").fetchall()
    connection.close()
    again = command("demo", "--accounts", "600")

    assert (0, str(600 - sent)) == (again.returncode, summary(again.stdout)["sent"])


def test_killed_it_delivers_again_what_was_claimed(command, wait_until):
    """After the lease; no e-mail is missing and none is written twice."""
    process = command.start("demo", "--accounts", "400")
    wait_until(lambda: len(outbox(command)) > 20)
    process.kill()
    process.communicate()
    before = {
        name: (command.folder / "planton-demo-outbox" / name).stat().st_mtime_ns
        for name in outbox(command)
    }
    with sqlite3.connect(command.folder / "planton-demo.db") as connection:
        connection.execute("UPDATE planton_active SET lease_expires_at = 0")  # time passes
    connection.close()
    again = command("demo", "--accounts", "400")
    after = {
        name: (command.folder / "planton-demo-outbox" / name).stat().st_mtime_ns for name in before
    }

    assert 0 == again.returncode
    assert 400 == len(outbox(command))
    assert before == after


def test_a_database_that_cannot_be_opened_is_told_in_one_line(command):
    """With its remedy, and exit code 2."""
    done = command("demo", "--database", "nowhere/app.db")

    assert 2 == done.returncode
    assert "does not exist, make it first" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_number_of_accounts_that_makes_no_sense_is_a_usage_error(command):
    """Nothing is made."""
    done = command("demo", "--accounts", "0")

    assert 2 == done.returncode
    assert [] == list(command.folder.iterdir())


def test_without_the_extra_for_the_database_the_demo_says_what_to_install(tmp_path):
    """Instead of a traceback."""
    code = "import sys; sys.modules['sqlite_utils'] = None; from planton.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"], cwd=tmp_path, capture_output=True, text=True
    )

    assert 2 == done.returncode
    assert "sqlite_utils is not installed: pip install 'planton[sqlite]'" in done.stderr


def test_each_database_has_an_outbox_of_its_own(command):
    """Otherwise a second one would find that all is sent; a name may have any characters."""
    done = command("demo", "--database", "other name?.db", "--accounts", "3")

    assert 0 == done.returncode, done.stderr
    assert (command.folder / "other name?.db").exists()
    assert 3 == len(outbox(command, "other name?-outbox"))


@pytest.mark.parametrize("url", ("sqlite:///app.db", "sqlite:///other%20name.db"))
def test_a_sqlite_url_is_a_file(command, url):
    """Relative to the current folder."""
    done = command("demo", "--storage", url, "--accounts", "3")

    assert 0 == done.returncode, done.stderr
    file = command.folder / unquote(url.removeprefix("sqlite:///"))
    assert file.exists()
    assert 3 == len(outbox(command, f"{file.stem}-outbox"))


@pytest.mark.parametrize("url", ("sqlite:///", "sqlite://app.db"))
def test_a_url_that_names_no_file_is_a_mistake(command, url):
    """It says how to write one."""
    done = command("demo", "--storage", url)

    assert 2 == done.returncode
    assert "write sqlite:///app.db" in done.stderr
