"""pg_task's tutorial: where work resumes that SIGKILL has interrupted."""

import json

import pytest

END = "19 tasks succeeded"


@pytest.mark.parametrize("line", ("try 3", "is at it", "at work: 2"))
def test_pg_task_killed_in_the_middle_ends_all_tasks_when_started_again(
    line, run, kill, database, expire
):
    """Whichever step it was in."""
    kill(line, "pg_task", database)
    expire(database)
    done = run("pg_task", database)

    assert ("", 0, END) == (done.stderr, done.returncode, done.stdout.splitlines()[-1])


def test_a_counter_goes_on_from_the_number_that_it_had_come_to(run, kill, query, database, expire):
    """No step is done again but the one that SIGKILL has interrupted."""

    def number():
        state = "SELECT CAST(payload AS text) FROM planton_active WHERE task_name = 'Counter'"
        rows = query(database, state)
        return json.loads(rows[0][0])["Counter"]["Count"]["number"] if rows else 0

    kill("Counting", "pg_task", database, SECONDS="0.1", when=lambda: number() >= 10)
    stored = number()
    expire(database)
    done = run("pg_task", database)

    assert 10 <= stored < 100
    assert f"from {stored} to 100 in {101 - stored} steps, each of them stored" in done.stdout
    assert ("", 0, END) == (done.stderr, done.returncode, done.stdout.splitlines()[-1])
