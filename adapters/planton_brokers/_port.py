"""What a relay and its consumers need of a broker."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

import attrs
import trio

from planton import PlantonError
from planton.storage import describe, failure_of


class BrokerError(PlantonError):
    """A broker does not answer, refuses, or did not confirm in time.

    Attributes:
        broker: Which one, without its password.
        problem: What is wrong.
    """

    def __init__(self, broker: object, problem: str) -> None:
        self.broker = str(broker)
        self.problem = problem
        super().__init__(f"{broker}: {problem}")


@attrs.frozen
class Message:
    """What is sent for one instruction.

    Attributes:
        id: The receipt of its claim: a broker that can drops what has the same id as before.
        body: The event, as JSON.
        key: The partition of the instruction; empty for none. A broker that can gives the messages
            of one key to one consumer, in their order.
    """

    id: str
    body: str
    key: str = ""


@attrs.frozen
class Received:
    """What a broker delivered.

    Attributes:
        body: Of the message; whatever it is that somebody sent.
        tag: By which the connection acknowledges it.
    """

    body: str | bytes
    tag: Any = None


class Sender(Protocol):
    """A connection to one queue of a broker, used by a relay.

    Whatever it raises ends the connection, and a new one is made.
    """

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Send messages, and return when the broker has answered for all of them.

        Of each, in their order, None if the broker has confirmed it: it is as safe there as the
        queue was made. Else why not. If it is cancelled, nothing is known of any. Several tasks may
        send at the same time.
        """


class Connection(Sender, Protocol):
    """A connection that a consumer uses, too; `receive` and `acknowledge` take turns."""

    async def receive(self, limit: int) -> Sequence[Received]:
        """Wait for a message; return those that are there, `limit` at most.

        No other message is taken from the queue: it is for consumers that have a free slot. If it
        is cancelled, what may have been taken is delivered again.
        """

    async def acknowledge(self, received: Sequence[Received]) -> None:
        """Have messages removed from the queue. What never is, is delivered again."""


S = TypeVar("S", bound=Sender, covariant=True)


class Outlet(Protocol[S]):
    """One queue of a broker; its `str` is for messages, and has no password in it.

    A relay needs a `Sender` of it, a consumer a `Connection`. One whose own workers consume says
    so by an attribute `workers`, a text of how to run them.
    """

    def connect(self) -> AbstractAsyncContextManager[S]:
        """Connect, and make the queue if it is not there; raise if the broker does not answer.

        Leaving the block closes the connection, in bounded time, also if the broker is away.
        """


# One that relays and consumers use.
Broker: TypeAlias = Outlet[Connection]


@asynccontextmanager
async def connected(broker: Outlet[S], timeout: float) -> AsyncIterator[S]:
    """Connect to a broker within `timeout` seconds.

    Raises:
        BrokerError: If it cannot be connected to, or for whatever the block raises.
    """
    try:
        with trio.CancelScope(deadline=trio.current_time() + timeout) as scope:
            async with broker.connect() as connection:
                scope.deadline = math.inf
                yield connection
    except Exception as error:
        raise error_of(broker, error) from None  # its text says it, in one line of the log
    if scope.cancelled_caught:
        raise BrokerError(broker, f"it cannot be connected to within {timeout:g} s")


def error_of(broker: object, raised: Exception) -> BrokerError:
    """Return what a client raised as an error of its broker."""
    failure = failure_of(raised)
    return failure if isinstance(failure, BrokerError) else BrokerError(broker, describe(failure))


def without_password(url: str) -> str:
    """Return a URL as it may be shown.

    Examples:
        >>> without_password("redis://user:secret@localhost:6379/0?password=secret")
        'redis://localhost:6379/0'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
