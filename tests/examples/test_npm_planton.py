"""The e-mail example of the npm package: its schema, and what SIGKILL does to it."""

import pytest

SUMMARIES = [
    "  sent 7 of 8, cap advisory; account 8: mailbox full",
    "  sent 8 of 8, cap strict",
]


@pytest.mark.parametrize(
    ("seconds", "line"),
    (("30", "4 active, concurrency 2"), ("0.5", "2 active, concurrency 2")),
    ids=("callbacks", "adapter"),
)
def test_an_example_killed_in_the_middle_sends_every_email_when_started_again(
    seconds, line, run, kill, query, postgres_url, expire
):
    """With plain callbacks as with the adapter."""
    kill(line, "npm_planton", postgres_url, SECONDS=seconds)
    if seconds == "30":
        query(
            postgres_url,
            "UPDATE with_callbacks.maintenance_task_execution"
            " SET last_seen_at = last_seen_at - interval '1 hour' WHERE ended_at IS NULL",
        )
    else:
        expire(postgres_url, "with_adapter.planton_active")
    done = run("npm_planton", postgres_url)

    assert ("", 0) == (done.stderr, done.returncode)
    assert SUMMARIES == [each for each in done.stdout.splitlines() if "  sent" in each]


def test_work_of_a_killed_process_is_terminated_and_done_by_another(run, kill, query, postgres_url):
    """One execution that says why it ended, and one that ended well."""
    kill("4 active", "npm_planton", postgres_url, SECONDS="30")
    table = "with_callbacks.maintenance_task_execution"
    query(postgres_url, f"UPDATE {table} SET last_seen_at = last_seen_at - interval '1 hour'")
    run("npm_planton", postgres_url)
    columns = "instruction, terminated_reason, state, ended_at IS NOT NULL"
    rows = query(postgres_url, f"SELECT {columns} FROM {table}")

    lost = [(str(n), "not seen any more", "COMPLETED", True) for n in range(1, 5)]
    done = [(str(n), None, "COMPLETED", True) for n in range(1, 9)]
    assert lost + done == sorted(rows, key=lambda row: (row[1] is None, row[0]))


def test_the_schema_is_that_of_the_npm_package(run, query, postgres_url):
    """UNLOGGED, with its constraints and indexes; plus the two primary keys."""
    run("npm_planton", postgres_url)
    space = "'with_callbacks'::regnamespace"
    names = "SELECT conname FROM pg_constraint WHERE contype <> 'n' AND connamespace ="
    indexes = "SELECT relname FROM pg_class WHERE relkind = 'i' AND relnamespace ="
    unlogged = (
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u'"
        " AND relname NOT LIKE 'planton%'"
    )

    assert {
        "maintenance_task_execution_check",
        "maintenance_task_execution_check1",
        "maintenance_task_execution_state_check",
        "maintenance_task_execution_maintenance_task_id_fkey",
        "maintenance_task_execution_pkey",
        "maintenance_task_pkey",
        "user_account_pkey",
    } == {name for (name,) in query(postgres_url, f"{names} {space}")}
    assert {
        "maintenance_task_id_idx",
        "maintenance_task_execution_ended_at_maintenance_task_id_idx",
        "maintenance_task_execution_maintenance_task_id_idx",
        "maintenance_task_name_idx",
        "maintenance_task_execution_pkey",
        "maintenance_task_pkey",
        "user_account_pkey",
    } == {name for (name,) in query(postgres_url, f"{indexes} {space}")}
    assert [("maintenance_task_execution",)] == query(postgres_url, unlogged)
