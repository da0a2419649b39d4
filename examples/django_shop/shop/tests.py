"""`manage.py test`."""

from django.db import connection
from django.test import TestCase, TransactionTestCase

from planton_executor import Work
from shop.models import Account
from shop.tasks import welcome


class SignUpTest(TestCase):
    """In a transaction that is rolled back, as all tests of Django."""

    def test_a_sign_up_queues_a_welcome(self) -> None:
        account_id = self.client.post("/accounts?email=ann@example.org").json()
        with connection.cursor() as cursor:
            cursor.execute("SELECT task_name, instruction FROM planton_pending")
            assert cursor.fetchall() == [("welcome", str(account_id))]


class WelcomeTest(TransactionTestCase):
    """A handler closes old connections, so it is tested without a transaction around it."""

    def test_a_handler_is_a_function(self) -> None:
        account = Account.objects.create(email="ann@example.org")
        instruction = str(account.id)
        work = Work(
            task_name="welcome", instruction=instruction, payload=None, delivery=1, receipt=""
        )
        welcome(work)
        account.refresh_from_db()
        assert account.welcomed == 1
