"""The webhook, against a server that answers what it is told to."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest
import trio

from planton import InvalidArgumentError, Planton
from planton.testing import MemoryStorage
from planton_brokers.webhook import Webhook
from planton_executor import Executor, FailedEvent

URL = "https://shop.example/ship"


async def post(*answers, **options):
    """Post one instruction, which the server answers so; return the requests and the record."""
    requests, failed = [], []

    def answer(request):
        requests.append(request)
        found = answers[min(len(requests), len(answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    storage = MemoryStorage()
    executor = Executor(storage)
    executor.on(FailedEvent, failed.append)
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        executor.handler("ship", **options)(Webhook(URL, secret="secret", client=client))
        task = storage.queue_task("ship", delay=5.0)
        async with Planton(tasks=[task], storages=[storage], consumers=[executor]):
            await storage.enqueue("ship", "parcel:7", payload={"to": "Zoë"})
            await trio.sleep(20)
            (record,) = await storage.find()
    return requests, record, failed


async def test_the_answer_is_the_report():
    """The result is the JSON of the answer, if it is some."""
    for answer, result in (
        (httpx2.Response(200, json={"tracking": 5}), {"tracking": 5}),
        (httpx2.Response(204), None),
        (httpx2.Response(202, text="thank you"), None),
        (httpx2.Response(200, text="[" * 60_000), None),
        (httpx2.Response(200, content=b"1" * 100_000), None),
    ):
        requests, record, _ = await post(answer)

        assert 1 == len(requests)
        assert ("succeeded", result) == (record.status, record.result)


async def test_a_request_is_signed():
    """By its id, its time and its body, as standardwebhooks.com has it."""
    (request,), _, _ = await post(httpx2.Response(200))
    headers, body = request.headers, request.content
    signed = b".".join(headers[f"webhook-{name}"].encode() for name in ("id", "timestamp"))
    digest = hmac.new(b"secret", signed + b"." + body, hashlib.sha256).digest()

    assert "v1," + base64.b64encode(digest).decode() == headers["webhook-signature"]
    assert headers["webhook-id"] == headers["idempotency-key"] == json.loads(body)["receipt"]
    assert {"to": "Zoë"} == json.loads(body)["payload"]
    assert "parcel:7" == json.loads(body)["instruction"]


@pytest.mark.parametrize("status", (429, 503))
async def test_a_server_that_is_busy_says_when_to_come_again(status):
    """In seconds, or by a date; else after a minute."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    for header, seconds in (("7", 7), (date, 100), ("whenever", 60), ("9" * 500, 86400)):
        busy = httpx2.Response(status, headers={"Retry-After": header})
        _, _, failed = await post(busy, httpx2.Response(200), retries=1)

        assert seconds == pytest.approx(failed[0].retry_in, abs=3), header


@pytest.mark.parametrize("answer", (400, 404, 500, 302, httpx2.ConnectError("refused")))
async def test_all_other_answers_fail(answer):
    """They are tried again as the handler says, and end with the reason."""
    found = answer if isinstance(answer, Exception) else httpx2.Response(answer, text="no such")
    requests, record, failed = await post(found, retries=2, retry_delay=3)

    assert (3, "dead") == (len(requests), record.status)
    assert [3, 3, 3] == [each.retry_in for each in failed]
    assert (str(answer) if isinstance(answer, int) else "refused") in record.error


async def test_a_client_is_made_where_none_is_given():
    """For one request."""
    storage = MemoryStorage()
    executor = Executor(storage)
    executor.handler("ship")(Webhook("http://127.0.0.1:1/", secret=b"secret"))
    task = storage.queue_task("ship", delay=5.0)
    async with Planton(tasks=[task], storages=[storage], consumers=[executor]):
        await storage.enqueue("ship", "a")
        with trio.fail_after(1000):
            while not await storage.find(status="dead"):
                await trio.sleep(1)


@pytest.mark.parametrize(
    ("options", "name"),
    (
        ({"url": "ftp://example.org"}, "url"),
        ({"url": 5}, "url"),
        ({"url": "https://"}, "url"),
        ({"secret": ""}, "secret"),
        ({"secret": 5}, "secret"),
        ({"secret": "whsec_!"}, "secret"),
        ({"timeout": 0}, "timeout"),
    ),
)
def test_a_webhook_of_what_makes_no_sense_is_refused(options, name):
    """Named; a secret is not shown."""
    with pytest.raises(InvalidArgumentError, match=name):
        Webhook(**{"url": URL, "secret": "whsec_c2VjcmV0", **options})
