"""Services: run beside the attempts, started again when they fail, ended last."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

import trio

from planton import delays
from planton._errors import CallbackTimeoutError
from planton._events import ErrorEvent
from planton._failures import guarded
from planton._loop.listeners import Listeners
from planton._parts import Started

# A service that has not called task_status.started() by then is reported, and attempts begin
# without it: something that only helps must not be able to keep work from being dispatched.
START_TIMEOUT = 5.0
# One that has served for so long has recovered: its next break is short again.
_RECOVERED_AFTER = 60.0
# The name of the service that a trio task belongs to, for what it reports.
current_service: ContextVar[str | None] = ContextVar("current_service", default=None)
# A service that fails again and again is started again after longer and longer breaks.
_restart_delay = delays.exponential(initial=1.0, maximum=60.0, jitter="equal")


Service: TypeAlias = Callable[..., Awaitable[None]]


class Services:
    """Starts and restarts services of a Planton."""

    def __init__(self, planton: Any, services: Sequence[Service], listeners: Listeners) -> None:
        self._planton = planton
        self._services = services
        self._listeners = listeners
        self._starting = trio.CancelScope()

    async def start(self, nursery: trio.Nursery) -> None:
        """Start all of them in `nursery`; return when they are ready, have failed, or tarry."""
        starting = [(_name(service), trio.Event()) for service in self._services]
        for service, (name, ready) in zip(self._services, starting, strict=True):
            nursery.start_soon(self._serve, service, name, ready, name=name)
        with self._starting:
            for name, ready in starting:
                await self._wait_for(name, ready)

    def give_up_starting(self) -> None:
        self._starting.cancel()

    async def _wait_for(self, name: str, ready: trio.Event) -> None:
        with trio.move_on_after(START_TIMEOUT):
            await ready.wait()
            return
        remedy = "; attempts begin without it: call task_status.started() when it is ready"
        await self._report(CallbackTimeoutError(None, name, START_TIMEOUT, remedy), name)

    async def _serve(self, service: Service, name: str, ready: trio.Event) -> None:
        current_service.set(name)
        failures = 0
        while True:
            began = trio.current_time()
            try:
                with guarded:
                    await service(self._planton, task_status=Started(ready.set))
                return ready.set()
            except Exception as error:
                await self._report(error, name)
            ready.set()
            has_recovered = trio.current_time() - began > _RECOVERED_AFTER
            failures = 0 if has_recovered else failures + 1
            await trio.sleep(_restart_delay(failures))

    async def _report(self, error: Exception, name: str) -> None:
        event = ErrorEvent(task_name=None, error=error, stage="service", service=name)
        await self._listeners.report(event)


def _name(service: Callable[..., object]) -> str:
    if inspect.ismethod(service):
        # By the class that the user knows, not the one that defines the method.
        return f"{type(service.__self__).__name__}.{service.__name__}"
    return getattr(service, "__qualname__", None) or type(service).__name__
