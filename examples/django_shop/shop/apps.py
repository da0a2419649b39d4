"""`manage.py migrate` makes the tables of Planton, too; so do Django's tests in their database."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db import connections
from django.db.models.signals import post_migrate
from psycopg.conninfo import make_conninfo

from planton.hosting import call_blocking
from planton_postgres import PostgresStorage


class ShopConfig(AppConfig):
    """Of an app that has tasks."""

    name = "shop"

    def ready(self) -> None:
        post_migrate.connect(migrate_planton, sender=self)


def migrate_planton(using: str, **_: Any) -> None:
    name = connections[using].settings_dict["NAME"]  # a test has another
    call_blocking(PostgresStorage(make_conninfo(settings.DATABASE_URL, dbname=name)).migrate)
