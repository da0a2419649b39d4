"""riaktq's queue: what SIGKILL does to all of its instances."""

import pytest

END = [
    "  tasks-that-done: 25",
    "  tasks-that-failed: task-44",
    "  tasks-that-are-todo-for-a-second: quantum",
]


@pytest.mark.parametrize(
    ("line", "active"),
    (("instances", 1), ("task-43 is opened", 1), ("ValueError: broken", 5)),
    ids=("an instance dies", "restarts", "five at work"),
)
def test_riaktq_killed_in_the_middle_ends_all_tasks_when_started_again(
    line, active, run, kill, query, database, expire
):
    """What all five instances had is rolled back."""

    def is_at_work():
        assigned = "SELECT count(*) FROM planton_active WHERE task_name = 'task'"
        return query(database, assigned) == [(active,)]

    kill(line, "riaktq", database, SECONDS="0.3", when=is_at_work)
    expire(database)
    done = run("riaktq", database)

    assert ("", 0, END) == (done.stderr, done.returncode, done.stdout.splitlines()[-3:])
