"""Dispatchers and consumers as processes that are killed, and stopped for longer than a lease."""

import faulthandler
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import trio

from planton_sqlite import SQLiteStorage

WORKER = Path(__file__).parent / "fault_worker.py"
# What happens to each claim, noted by the database itself in the transaction that does it.
AUDIT = """
CREATE TABLE rescued (instruction, receipt, lease_expires_at REAL, at REAL);
CREATE TABLE gone (instruction, receipt);
CREATE TRIGGER rescue AFTER UPDATE OF token ON planton_active BEGIN
    INSERT INTO rescued VALUES (
        OLD.instruction, OLD.id || '.' || OLD.token, OLD.lease_expires_at, NEW.claimed_at
    );
END;
CREATE TRIGGER go AFTER DELETE ON planton_active BEGIN
    INSERT INTO gone VALUES (OLD.instruction, OLD.id || '.' || OLD.token);
END;
"""


class Fleet:
    """Processes on one database."""

    def __init__(self, folder):
        self.folder = folder
        self.path = str(folder / "work.db")
        self.running = []
        trio.run(self.migrate)
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript(AUDIT)

    async def migrate(self):
        async with SQLiteStorage(self.path) as storage:
            await storage.migrate()

    def start(self, role, **options):
        options = {"path": self.path, "folder": str(self.folder), "role": role, **options}
        process = subprocess.Popen([sys.executable, str(WORKER), json.dumps(options)])
        process.role, process.options = role, options
        self.running.append(process)
        return process

    def kill(self, process):
        process.kill()
        process.wait()
        self.running.remove(process)
        self.start(**{k: v for k, v in process.options.items() if k not in ("path", "folder")})

    def notes(self, process):
        file = self.folder / f"{process.pid}.notes"
        return self.read(file) if file.exists() else []

    def read(self, file):
        # The last line of one that was killed may be torn.
        return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("]")]

    def all_notes(self):
        return [note for file in self.folder.glob("*.notes") for note in self.read(file)]

    def query(self, sql, *parameters):
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            return connection.execute(sql, parameters).fetchall()

    def enqueue(self, first, count):
        rows = [(str(number),) for number in range(first, first + count)]
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.executemany(
                "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', ?)", rows
            )

    def ended(self):
        return self.query("SELECT count(*) FROM planton_ended")[0][0]

    def wait_until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for_all(self, count):
        """Wait until all have ended, as long as some do."""
        while (ended := self.ended()) < count:
            self.wait_until(lambda before=ended: self.ended() > before)

    def check(self, count):
        """Nothing is lost, ended twice, given to another too soon, or accepted late."""
        names = {str(number) for number in range(count)}
        ended = self.query("SELECT instruction, delivery, status FROM planton_ended")
        rescued = self.query("SELECT * FROM rescued")
        gone = self.query("SELECT * FROM gone")
        notes = self.all_notes()
        applied = {tuple(rest) for what, *rest in notes if what == "applied"}
        stale = {tuple(rest) for what, *rest in notes if what == "stale"}
        old = {(instruction, receipt) for instruction, receipt, *_ in rescued}

        assert Counter(names) == Counter(instruction for instruction, *_ in ended)
        assert {"succeeded"} == {status for *_, status in ended}
        assert [(0,)] == self.query("SELECT count(*) FROM planton_active")
        assert [("ok",)] == self.query("PRAGMA integrity_check")
        late = [(until, at) for *_, until, at in rescued if until > at]
        assert [] == late, "given to another before its lease was over"
        released = len(gone) - count
        again = Counter(instruction for instruction, *_ in rescued)
        if not released:
            assert [] == [row for row in ended if row[1] != 1 + again[row[0]]]
        assert applied <= set(gone), "what was accepted was the claim at that time"
        assert set() == applied & old, "no late write was accepted"
        assert set() == stale & (set(gone) - old), "nor a timely one refused"
        assert [] == [note for note in notes if note[0] == "error"]
        return len(rescued), len(stale)


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    yield fleet
    for process in fleet.running:
        process.kill()
        process.wait()


def check_kills(fleet, *, kills, each, pause):
    """Kill whoever is at work, at moments of chance, while work comes in."""
    for role in ("dispatch", "consume") * 3:
        fleet.start(role)
    victims = Counter()
    for number in range(kills):
        fleet.enqueue(number * each, each)
        time.sleep(random.uniform(*pause))
        at_work = lambda: [p for p in fleet.running if len(fleet.notes(p)) > 1]  # noqa: E731
        fleet.wait_until(at_work)
        victim = random.choice(at_work())
        victims[victim.role] += 1
        fleet.kill(victim)
    fleet.wait_for_all(kills * each)
    again, stale = fleet.check(kills * each)

    assert kills == victims.total()
    print(
        f"{dict(victims)} killed; {again} of {kills * each} delivered again, "
        f"{stale} late reports refused"
    )


def test_dispatchers_and_consumers_that_are_killed_lose_nothing(fleet):
    """What they held is delivered again after its lease, not before."""
    check_kills(fleet, kills=6, each=50, pause=(0.1, 0.3))


@pytest.mark.slow
def test_two_hundred_kills_over_ten_thousand_instructions(fleet):
    """The same, often."""
    faulthandler.cancel_dump_traceback_later()  # this takes minutes
    check_kills(fleet, kills=200, each=50, pause=(0.1, 0.6))


@pytest.mark.parametrize("role", ("dispatch", "consume"))
def test_who_is_stopped_for_longer_than_its_leases_does_no_harm(fleet, role):
    """SIGSTOP, then SIGCONT: what it delivers or reports late is refused."""
    # The dispatcher has some in hand that it has not sent yet, a consumer some that it works on.
    think = 0.03 if role == "dispatch" else 0
    options = {"cap": 10, "hold": (0.05, 0.2), "lease": 0.7, "think": think}
    stopped = fleet.start(role, **options)
    other = fleet.start("consume" if role == "dispatch" else "dispatch", **options)
    fleet.wait_until(lambda: fleet.notes(stopped) and fleet.notes(other))
    fleet.enqueue(0, 100)
    fleet.wait_until(lambda: len(fleet.notes(stopped)) > 20)
    os.kill(stopped.pid, signal.SIGSTOP)
    # What it held goes to this one.
    fleet.start(role, **options)
    time.sleep(1)
    fleet.wait_until(lambda: fleet.query("SELECT count(*) FROM rescued")[0][0] > 0)
    os.kill(stopped.pid, signal.SIGCONT)
    fleet.wait_for_all(100)
    fleet.wait_until(lambda: fleet.query("SELECT count(*) FROM planton_active") == [(0,)])
    time.sleep(0.5)  # its last reports
    again, stale = fleet.check(100)

    assert again > 0
    print(f"{again} delivered again, {stale} late reports refused")
