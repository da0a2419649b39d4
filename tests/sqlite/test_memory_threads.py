"""The storage in memory, looked at from another thread than Planton's."""

import subprocess
import sys

PROGRAM = """
import faulthandler
import time

from planton import InstructionEvent, Planton
from planton.hosting import start_in_thread
from planton.testing import MemoryStorage

faulthandler.dump_traceback_later(20, exit=True)
storage = MemoryStorage()
names = [str(number) for number in range(150)]
storage.add("task", *names)
planton = Planton(tasks=[storage.queue_task("task", concurrency=5, delay=0)])


@planton.on(InstructionEvent)
async def consume(event):
    await storage.complete(event.receipt)


with start_in_thread(planton):
    while len(storage.instructions("task", "ended")) < len(names):
        time.sleep(0)
"""


def test_another_thread_may_look_at_it():
    """Neither waits for ever for the other."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stderr), done.stderr
