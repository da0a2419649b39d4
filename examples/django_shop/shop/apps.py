"""`manage.py migrate` makes the tables of Planton, too; so do Django's tests in their database."""

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate
from psycopg.conninfo import make_conninfo

from planton.hosting import call_blocking
from planton_postgres import PostgresStorage

OPTIONS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


class ShopConfig(AppConfig):
    """Of an app that has tasks."""

    name = "shop"

    def ready(self) -> None:
        post_migrate.connect(migrate_planton, sender=self)


def migrate_planton(using: str, **_: Any) -> None:
    known = connections[using].settings_dict
    server = {option: known[name] for name, option in OPTIONS.items() if known[name]}
    call_blocking(PostgresStorage(make_conninfo(**server)).migrate)
