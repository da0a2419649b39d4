"""tasq's TaskExecutor: the UNIQUE claim, and what SIGKILL does to it."""

import sqlite3

import psycopg
import pytest


@pytest.mark.parametrize(
    ("line", "seconds", "active"),
    (("left over at start-up: 6", "30", 4), ("polling found 7", "0.3", 1)),
    ids=("two instances", "push"),
)
def test_tasq_killed_in_the_middle_ends_all_jobs_when_started_again(
    line, seconds, active, run, kill, query, database, expire
):
    """Each of them, whatever it was at."""

    def is_at_work():
        return query(database, "SELECT count(*) FROM planton_active") >= [(active,)]

    kill(line, "tasq", database, SECONDS=seconds, when=is_at_work)
    expire(database)
    (left,) = query(database, "SELECT count(*) FROM job WHERE status IN ('new', 'executing')")
    done = run("tasq", database)

    assert left[0] >= active
    assert ("", 0) == (done.stderr, done.returncode)
    assert f"left over at start-up: {left[0]} jobs" in done.stdout
    assert {"success", "error"} == {
        status for (status,) in query(database, "SELECT status FROM job")
    }
    assert [(0,)] == query(database, "SELECT count(*) FROM planton_active")


def test_each_of_two_instances_holds_two_and_a_second_claim_is_refused(kill, query, database):
    """By UNIQUE, as in tasq; on a database without SKIP LOCKED, too."""

    def is_at_work():
        return query(database, "SELECT count(*) FROM planton_active") == [(4,)]

    kill("left over", "tasq", database, SECONDS="30", when=is_at_work)
    again = """
        INSERT INTO planton_active (
            id, token, task_name, instruction, delivery, created_at, claimed_at, lease,
            lease_expires_at
        )
        SELECT id + 1000, token, task_name, instruction, 1, created_at, claimed_at, lease,
            lease_expires_at
        FROM planton_active
    """

    assert [("1",), ("2",), ("3",), ("4",)] == query(
        database, "SELECT instruction FROM planton_active ORDER BY instruction"
    )
    with pytest.raises(
        (sqlite3.IntegrityError, psycopg.errors.UniqueViolation), match=r"(?i)unique"
    ):
        query(database, again)
