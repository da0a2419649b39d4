"""The program of docs/production.md does what the page says, as a process of its own."""

import json
import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "production.md"


@pytest.fixture
def port(command, tmp_path, monkeypatch):
    """Where the page's program, which lies in the folder then, answers the probe."""
    block = re.search(r"^```python\n(# worker.py\n.*?)^```", PAGE.read_text(), re.M | re.S)
    assert block is not None
    command.write("worker.py", block[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("HEALTH_PORT", port)
    monkeypatch.setenv("DATABASE", str(tmp_path / "app.db"))
    monkeypatch.setenv("PLANTON_STORAGE", f"sqlite:///{tmp_path / 'app.db'}")
    return port


def is_healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_the_program_of_the_page_works_answers_the_probe_and_stops(command, port, wait_until):
    """`planton run worker:app`, work from another process, a probe, SIGTERM."""
    command("migrate")
    command("enqueue", "send", "ann@example.com", "--yes")
    process = command.start("run", "worker:app")

    def succeeded():
        return json.loads(command("find", "--status", "succeeded", "--json").stdout)["instructions"]

    try:
        wait_until(lambda: is_healthy(port))
        wait_until(succeeded)
        (found,) = succeeded()
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)

    assert {"sent_to": "ann@example.com"} == found["result"]
    assert 0 == process.returncode
    assert "ERROR" not in errors
