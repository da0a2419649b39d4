"""LogBus's task runner: its report reaches a mail server, and what SIGKILL does to it."""

import email
import socket
import sqlite3

import psycopg
import pytest
from aiosmtpd.controller import Controller

END = ["  default: 1 queued, 7 succeeded", "  slow: 1 queued"]


class Mailbox:
    """What a mail server was given."""

    def __init__(self):
        self.messages = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802  aiosmtpd's name
        self.messages.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content)))
        return "250 OK"


@pytest.fixture
def mail_server():
    """A real one, on a port of this machine: `.port`, `.handler.messages`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # the controller connects to the number that it is given
    controller = Controller(Mailbox(), hostname="127.0.0.1", port=port)
    controller.start()
    yield controller
    controller.stop()


def test_the_report_of_the_day_is_sent_by_email(run, mail_server):
    """With what each queue has in each status."""
    run("logbus", SMTP=f"127.0.0.1:{mail_server.port}")
    ((recipients, message),) = mail_server.handler.messages

    assert ["ops@example.com"] == recipients
    assert "Tasks of the last 24 hours" == message["Subject"]
    assert [
        "  default: 1 queued, 5 succeeded, 1 failed, 1 dead",
        "    foo-5 dead: ConnectionError: no network",
        "    foo-6 failed: a payload without n",
        "  slow: 1 queued",
    ] == message.get_payload().splitlines()


def test_logbus_killed_in_the_middle_ends_all_tasks_when_started_again(
    run, kill, query, database, expire
):
    """Those that were in hand, too."""

    def is_at_work():
        return query(database, "SELECT instruction FROM planton_active") == [("foo-2",)]

    kill("second time: False", "logbus", database, SECONDS="30", when=is_at_work)
    expire(database)
    done = run("logbus", database)

    assert ("", 0, END) == (done.stderr, done.returncode, done.stdout.splitlines()[-2:])
    assert [("foo-2", 2, '{"foo": "bar"}')] == query(
        database,
        "SELECT instruction, delivery, CAST(result AS text) FROM planton_ended"
        " WHERE instruction = 'foo-2'",
    )


def test_running_requires_a_lock_and_nothing_else_can_have_one(run, kill, query, database):
    """The two constraints of the tasks table: here one is of a table, the other its shape."""

    def is_at_work():
        return query(database, "SELECT instruction FROM planton_active") == [("foo-2",)]

    kill("second time: False", "logbus", database, SECONDS="30", when=is_at_work)
    locked = "SELECT status, lease_expires_at IS NOT NULL FROM planton_instruction GROUP BY 1, 2"

    assert {("queued", False), ("running", True)} == {
        (status, bool(is_locked)) for status, is_locked in query(database, locked)
    }
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
        query(database, "UPDATE planton_active SET lease_expires_at = NULL")
    for table in ("planton_pending", "planton_ended"):
        with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedColumn)):
            query(database, f"SELECT lease_expires_at FROM {table}")
