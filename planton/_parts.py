"""What a program is made of beside its tasks: storages, consumers and services.

`P` is `Planton`, which is made of them: it would be a circle to import it here.
"""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import trio

from planton._errors import InvalidArgumentError
from planton._events import InstructionEvent
from planton._functions import problem_of_function

P = TypeVar("P", contravariant=True)


class Service(Protocol[P]):
    """Runs for as long as Planton runs; it is cancelled to end it, after the drain."""

    async def __call__(self, planton: P, *, task_status: "trio.TaskStatus[Any]") -> None:
        """Call `task_status.started()` when ready, then serve until cancelled."""


class StoragePart(AbstractAsyncContextManager[Any], Protocol[P]):
    """A storage as Planton opens, serves and closes it."""

    @property
    def is_open(self) -> bool:
        """Whether it is open; then whoever opened it closes it, too."""

    async def serve(self, planton: P, *, task_status: "trio.TaskStatus[None]") -> None:
        """Serve until cancelled: wake-ups, rescue, housekeeping. A service."""


class Started:
    """A `task_status` that may be started again and again, and says so once."""

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell
        self.is_called = False

    def started(self, _: None = None) -> None:
        if not self.is_called:
            self.is_called = True
            self._tell()


class Consumer(Protocol):
    """Takes instructions, to execute them or to hand them on.

    It may also have `async serve(planton, *, task_status)`, a service that is cancelled when all
    is handed over, while storages still serve: there it drains what it has, until it is done or
    `planton.wait_until_aborted()` returns. It calls `planton.wake(name)` when a slot frees up.

    One with `failing(task_name)` returns in words what is wrong with the work of a task, such as
    that many instructions in a row have failed, or None: it is in `TaskStatus.failing`, and a
    warning of `health`.

    One with `async submit_many(events)` is given all that an attempt claimed in one call. It
    returns for each, in their order, None or the exception why it has not taken it.
    """

    def capacity(self, task_name: str, /) -> int | None:
        """Return how many more instructions of a task it can take now; None if it takes none.

        It is called often, and returns at once. Whether it is None for a task does not change.
        """

    async def submit(self, event: InstructionEvent, /) -> None:
        """Take over an instruction; returning means that it has. Raising means that it has not."""


def checked_parts(name: str, parts: Iterable[Any], methods: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the parts of one kind as a tuple.

    Raises:
        InvalidArgumentError: If they are no list, or one lacks a method, or is there twice.
    """
    if not isinstance(parts, Iterable) or isinstance(parts, str):
        raise InvalidArgumentError(name, parts, "give a list of them")
    found = tuple(parts)
    for part in found:
        missing = [method for method in methods if not hasattr(part, method)]
        if missing:
            raise InvalidArgumentError(name, part, f"it has no {', '.join(missing)}")
        if isinstance(part, type):
            raise InvalidArgumentError(name, part, "it is a class: give an object of it")
        if sum(part is other for other in found) > 1:
            raise InvalidArgumentError(name, part, "it is there more than once")
    return found


def checked_services(services: Iterable[Any], served: Iterable[object]) -> tuple[Any, ...]:
    """Return services as a tuple.

    Raises:
        InvalidArgumentError: If they are no list, or one is no function, or is served already.
    """
    if callable(services):
        raise InvalidArgumentError("services", services, "give a list of them")
    found = tuple(services)
    for service in found:
        if problem_of_function(service):
            remedy = "give async functions of (planton, *, task_status)"
            raise InvalidArgumentError("services", service, remedy)
        if any(is_method_of(service, part, "serve") for part in served):
            remedy = "leave it out: storages and consumers are served without it"
            raise InvalidArgumentError("services", service, remedy)
    return found


def is_method_of(function: object, owner: object, name: str) -> bool:
    """Return whether `function` is the method `name` of `owner`."""
    return inspect.ismethod(function) and function.__name__ == name and function.__self__ is owner
