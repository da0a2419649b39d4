"""Requests: an account and its welcome e-mail are committed together."""

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from planton.hosting import call_blocking
from shop.models import Account
from shop.tasks import storage


@csrf_exempt
@transaction.atomic
def sign_up(request: HttpRequest) -> JsonResponse:
    account = Account.objects.create(email=request.GET["email"])
    call_blocking(storage.enqueue, "welcome", str(account.id), connection=connection)
    return JsonResponse(account.id, safe=False)


def welcomed(request: HttpRequest, account_id: int) -> JsonResponse:
    """Return how many e-mails an account was sent."""
    return JsonResponse(Account.objects.get(id=account_id).welcomed, safe=False)
