"""What is done outside of requests, by `manage.py run_planton`."""

import time
from collections.abc import Callable
from functools import wraps

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


def in_django(handler: Callable[[Work], None]) -> Callable[[Work], None]:
    """Treat the connections of a worker thread as Django does those of a request."""

    @wraps(handler)
    def handle(work: Work) -> None:
        close_old_connections()
        try:
            handler(work)
        finally:
            close_old_connections()

    return handle


@executor.handler("welcome", retries=3, retry_delay=60)
@in_django
def welcome(work: Work) -> None:
    time.sleep(settings.SECONDS)  # send the e-mail here
    Account.objects.filter(id=work.instruction).update(welcomed=F("welcomed") + 1)
