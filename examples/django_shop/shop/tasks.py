"""What is done outside of requests, by `manage.py run_planton`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import close_old_connections
from django.db.models import F

from planton import Planton
from planton.hosting import terminate_on_signals
from planton_executor import Executor, Work
from planton_postgres import PostgresStorage
from shop.models import Account

storage = PostgresStorage(settings.DATABASE_URL)
executor = Executor(storage, concurrency=10)
planton = Planton(
    tasks=[storage.queue_task("welcome", concurrency=5)],
    storages=[storage],
    consumers=[executor],
    services=[terminate_on_signals],
)


@contextmanager
def as_a_request() -> Iterator[None]:
    """Treat the connections of a worker thread as Django does those of a request."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


@executor.handler("welcome", retries=3, retry_delay=60)
@as_a_request()
def welcome(work: Work) -> None:
    time.sleep(settings.SECONDS)  # send the e-mail here
    Account.objects.filter(id=work.instruction).update(welcomed=F("welcomed") + 1)
