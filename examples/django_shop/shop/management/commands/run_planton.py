"""`manage.py run_planton`."""

from typing import Any

import trio
from django.core.management.base import BaseCommand

from shop.tasks import planton


class Command(BaseCommand):
    """Run Planton in a process of its own."""

    help = "Does what was queued, until SIGTERM or Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        trio.run(planton.run)
