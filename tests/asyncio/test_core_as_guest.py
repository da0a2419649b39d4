"""The core behaves as a guest as it does on plain trio: its own tests say so.

All of them: `pytest tests/core --planton-guest=asyncio`, or `=uvloop`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "core"
SOME = "test_lifecycle.py", "test_services.py"


def run_tests(kind, files, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *options]
    paths = [str(CORE / file) for file in files]
    # Not the settings of the pytest that runs this one.
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    done = subprocess.run(
        [*command, f"--planton-guest={kind}", *paths],
        cwd=CORE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout[-3000:] if done.returncode else ""


def test_a_part_of_the_core_runs_as_a_guest(kind):
    """Starts and stops, cancellations, services; in virtual time."""
    assert (0, "") == run_tests(kind, SOME)


@pytest.mark.slow
def test_the_core_runs_as_a_guest(kind):
    """All of its tests."""
    assert (0, "") == run_tests(kind, [""])
