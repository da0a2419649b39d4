"""Forks and signals: real processes."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

COMMON = """
import os, sys, time, trio
from planton import InstructionEvent, Planton, PlantonError, Task
from planton.hosting import start_in_thread, terminate_on_signals

async def schedule(request):
    return []

def make(**options):
    tasks = [Task(name="task", schedule=schedule, cap="strict", delay=0.01)]
    planton = Planton(tasks=tasks, **options)
    planton.on(InstructionEvent, print)
    return planton
"""
FORKED = """
planton = make()
handle = start_in_thread(planton)
if os.fork() == 0:
    for call in (handle.wake, handle.status, handle.terminate, lambda: handle.call(print)):
        try:
            call()
        except PlantonError as error:
            print(str(error).replace(str(os.getppid()), "PARENT"), flush=True)
    try:
        trio.run(planton.run)
    except PlantonError as error:
        print(error, flush=True)
    sys.exit(0)
_, status = os.wait()
print("child ended with", os.waitstatus_to_exitcode(status), "parent runs:", handle.is_running)
handle.terminate()
"""
FORKED_IN_A_BLOCK = """
with start_in_thread(make()) as handle:
    if os.fork() == 0:
        sys.exit(7)
    _, status = os.wait()
    print("child ended with", os.waitstatus_to_exitcode(status), "parent runs:", handle.is_running)
"""
ON_SIGNALS = """
class Waiting:
    def capacity(self, task_name):
        return 1
    async def submit(self, event):
        pass
    async def serve(self, planton, *, task_status):
        task_status.started()
        print("ready", flush=True)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await planton.wait_until_aborted() if "slowly" in sys.argv else None
                print("drained", flush=True)

planton = make(consumers=[Waiting()], services=[terminate_on_signals], grace=60)
trio.run(planton.run)
print("ended", flush=True)
"""


def start(script, *arguments):
    code = COMMON + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_gets_an_error_instead_of_hanging():
    """The thread was not copied with it (gunicorn --preload)."""
    said, errors = start(FORKED).communicate(timeout=60)
    *mine, inherited, end = said.splitlines()

    assert "" == errors
    assert 4 == len(mine)
    assert all(line.startswith("this Planton runs in process PARENT, which this") for line in mine)
    assert "this Planton runs in the process that this one was forked from" in inherited
    assert "child ended with 0 parent runs: True" == end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_is_forked_in_the_block_of_a_handle_leaves_it_alone():
    """Whatever ends the child, it is not the child's to terminate."""
    said, errors = start(FORKED_IN_A_BLOCK).communicate(timeout=60)

    assert "" == errors
    assert "child ended with 7 parent runs: True" == said.splitlines()[-1]


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_program_that_calls_trio_run_drains_at_a_signal(number):
    """With one word among its services."""
    process = start(ON_SIGNALS)
    assert "ready\n" == process.stdout.readline()
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)

    assert ("drained\nended\n", "", 0) == (said, errors, process.returncode)


def test_a_second_signal_ends_the_drain():
    """Consumers break off what they wait for."""
    process = start(ON_SIGNALS, "slowly")
    assert "ready\n" == process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)

    assert ("drained\nended\n", "", 0) == (said, errors, process.returncode)


def test_signals_are_refused_in_a_thread_that_gets_none():
    """It is reported, and work goes on."""
    script = """
    with start_in_thread(make(services=[terminate_on_signals])) as handle:
        print(handle.is_running)
    """
    said, errors = start(script).communicate(timeout=60)

    assert "True\n" == said
    assert "terminate_on_signals can run in the main thread only" in errors
