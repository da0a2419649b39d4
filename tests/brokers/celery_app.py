"""A Celery app of a fleet, whose workers are its consumers; killed by the tests."""

import os
import time

import celery

from planton_brokers.celery import CeleryQueue, InstructionTask
from planton_executor import Work
from planton_postgres import PostgresStorage

app = celery.Celery("celery_app", broker=os.environ["PLANTON_TEST_BROKER"])
app.conf.worker_prefetch_multiplier = 1


def queue() -> CeleryQueue:
    return CeleryQueue(app, task="task")


def note(word: str, instruction: str) -> None:
    log = os.open(os.environ["PLANTON_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{word} {instruction} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(log)


@app.task(
    base=InstructionTask,
    name="task",
    open_storage=lambda: PostgresStorage(os.environ["PLANTON_TEST_DSN"]),
    lease=3.0,
    retry_limit=1000,
)
def execute(work: Work) -> None:
    note("begins", work.instruction)
    time.sleep(0.001)
    note("ends", work.instruction)
