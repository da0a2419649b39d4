"""A handler of the executor that does the work by an HTTP request: the answer is the report."""

import base64
import hashlib
import hmac
import json
import time
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from planton import InvalidArgumentError, PlantonError
from planton.storage import to_number
from planton_executor import TryAgain, Work

# So many bytes of an answer are read; what is longer is no result.
_LONGEST = 64 * 1024
# If the server does not say when to come again, or says never.
_LATER, _LATEST = 60.0, 86400.0


class WebhookError(PlantonError):
    """The server answered a request with an error.

    Attributes:
        status: Of the answer.
    """

    def __init__(self, url: httpx2.URL, status: int, text: str) -> None:
        self.status = status
        super().__init__(f"{url.host}{url.path} answered {status}: {text[:500]}")


class Webhook:
    """Posts each instruction to a URL; the answer says how it ended.

        ship = Webhook("https://shop.example/ship", secret=os.environ["WEBHOOK_SECRET"])
        executor.handler("ship", timeout=60, retries=5, retry_delay=30)(ship)

    With 2xx the instruction has succeeded; the result is the JSON of the answer, if it is some.
    With 429 and 503 it is tried again after the `Retry-After` of the answer. All others fail.

    The request is signed as standardwebhooks.com has it (`webhook-id`, `webhook-timestamp`,
    `webhook-signature`). Its id is the receipt, which is also its `Idempotency-Key`: the same
    only for repeats of one delivery. Redirects are not followed.

    Args:
        url: Where to.
        secret: Signs the requests: bytes, or text, which may be base64 after `whsec_`.
        timeout: Seconds that the server may let the connection rest.
        client: Has connections that are kept; one is made for each request if None.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | bytes,
        timeout: float = 30.0,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        try:
            self._url = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError) as error:
            raise InvalidArgumentError("url", url, f"give an http or https URL ({error})") from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise InvalidArgumentError("url", url, "give an http or https URL")
        self._secret = _to_key(secret)
        self._timeout = to_number("timeout", timeout, above=0)
        self._client = client
        self._context = httpx2.create_ssl_context() if client is None else None

    async def __call__(self, work: Work) -> Any:
        """Post one instruction; return the result, or raise why it failed."""
        if self._client is not None:
            return await self._post(self._client, work)
        async with httpx2.AsyncClient(verify=self._context or True) as client:
            return await self._post(client, work)

    async def _post(self, client: httpx2.AsyncClient, work: Work) -> Any:
        members = ("task_name", "instruction", "payload", "delivery", "receipt")
        body = json.dumps({name: getattr(work, name) for name in members}).encode()
        headers = signed_headers(self._secret, work.receipt, int(time.time()), body)
        async with client.stream(
            "POST", self._url, content=body, headers=headers, timeout=self._timeout
        ) as response:
            answer = await _read(response)
        if response.is_success:
            return _to_result(answer)
        text = answer[:500].decode(errors="replace")
        error = WebhookError(self._url, response.status_code, text)
        if response.status_code in (429, 503):
            raise TryAgain(str(error), after=_seconds(response.headers.get("Retry-After")))
        raise error


def signed_headers(secret: bytes, receipt: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a request: receivers compare the signature with their own.

    Examples:
        >>> signed_headers(b"key", "1.2", 1700000000, b"{}")["webhook-signature"]
        'v1,swm3quILAuSQgv7RiPAXuX1VezYLdfjW2Hdm5h5jtzQ='
    """
    digest = hmac.digest(secret, f"{receipt}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "idempotency-key": receipt,
        "webhook-id": receipt,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _to_key(secret: str | bytes) -> bytes:
    key = secret.encode() if isinstance(secret, str) else secret
    if isinstance(secret, str) and secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
    if not isinstance(key, bytes) or not key:
        raise InvalidArgumentError("secret", "…", "give bytes or text, not empty")
    return key


async def _read(response: httpx2.Response) -> bytes:
    answer = b""
    body: Any = response.aiter_bytes(_LONGEST)  # a generator, whatever its type says
    async with aclosing(body) as chunks:
        async for chunk in chunks:
            answer += chunk
            if len(answer) > _LONGEST:
                return b""
    return answer


def _to_result(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _seconds(retry_after: str | None) -> float:
    """Return a Retry-After in seconds, which may be a number or a date.

    Examples:
        >>> [_seconds(text) for text in ("7", "soon", None, "-5", "1e400")]
        [7.0, 60.0, 60.0, 60.0, 60.0]
    """
    text = retry_after or ""
    try:
        if text.isascii() and text.isdigit():
            return min(float(text[:20]), _LATEST)
        left = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        return min(max(left, 0.0), _LATEST)
    except (ValueError, TypeError, OverflowError):
        return _LATER
