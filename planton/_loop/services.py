"""Services: run beside the attempts, started again when they fail, ended last."""

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import trio

from planton import delays
from planton._errors import CallbackTimeoutError
from planton._events import ErrorEvent
from planton._loop.groups import unwrapped

if TYPE_CHECKING:
    from planton._loop.listeners import Listeners
    from planton._planton import Planton

# A service that has not called task_status.started() by then is reported, and attempts begin
# without it: something that only helps must not be able to keep work from being dispatched.
START_TIMEOUT = 5.0
# The name of the service that a trio task belongs to, for what it reports.
current_service: ContextVar[str | None] = ContextVar("current_service", default=None)
# A service that fails again and again is started again after longer and longer breaks.
_restart_delay = delays.exponential(initial=1.0, maximum=60.0, jitter="equal")


class Service(Protocol):
    """Runs for as long as Planton runs; it is cancelled to end it, after the drain."""

    async def __call__(self, planton: "Planton", *, task_status: "trio.TaskStatus[None]") -> None:
        """Call `task_status.started()` when ready, then serve until cancelled."""


class Services:
    """Starts and restarts services."""

    def __init__(
        self, planton: "Planton", services: Sequence[Service], listeners: "Listeners"
    ) -> None:
        self._planton = planton
        self._services = services
        self._listeners = listeners
        self._starting = trio.CancelScope()

    async def start(self, nursery: trio.Nursery) -> None:
        """Start all of them in `nursery`; return when they are ready, have failed, or tarry."""
        ready = [trio.Event() for _ in self._services]
        for service, event in zip(self._services, ready, strict=True):
            nursery.start_soon(self._serve, service, event)
        with self._starting:
            for service, event in zip(self._services, ready, strict=True):
                await self._wait_for(service, event)

    def give_up_starting(self) -> None:
        """Do not wait for services that are not ready yet."""
        self._starting.cancel()

    async def _wait_for(self, service: Service, ready: trio.Event) -> None:
        with trio.move_on_after(START_TIMEOUT):
            await ready.wait()
            return
        remedy = "; attempts begin without it: call task_status.started() when it is ready"
        error = CallbackTimeoutError(None, _name(service), START_TIMEOUT, remedy)
        await self._report(error, service)

    async def _serve(self, service: Service, ready: trio.Event) -> None:
        current_service.set(_name(service))
        failures = 0
        while True:
            began = trio.current_time()
            try:
                await self._once(service, ready)
                return
            except Exception as error:
                await self._report(unwrapped(error), service)
            ready.set()
            # One that served for a while has recovered: the next break is short again.
            failures = 0 if trio.current_time() - began > 60 else failures + 1
            await trio.sleep(_restart_delay(failures))

    async def _once(self, service: Service, ready: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_Adapter(service, self._planton))
            ready.set()

    async def _report(self, error: BaseException, service: Service) -> None:
        assert isinstance(error, Exception)
        name = _name(service)
        event = ErrorEvent(task_name=None, error=error, stage="service", service=name)
        await self._listeners.report(event)


class _Adapter:
    """A service bound to its Planton, under the service's own name for trio's tracebacks."""

    def __init__(self, service: Service, planton: "Planton") -> None:
        self._service, self._planton = service, planton
        self.__name__ = _name(service)

    async def __call__(self, *, task_status: "trio.TaskStatus[None]") -> None:
        await self._service(self._planton, task_status=task_status)


def _name(service: Callable[..., object]) -> str:
    if inspect.ismethod(service):
        # By the class that the user knows, not the one that defines the method.
        return f"{type(service.__self__).__name__}.{service.__name__}"
    return getattr(service, "__qualname__", None) or type(service).__name__
