"""Telling the listeners of Planton; one that fails stops nobody else."""

from planton._events import EVENT_TYPES, AttemptEvent, ErrorEvent
from planton._listeners import EventListeners, call_listener
from planton._loop.log import ErrorLog, log_error


class Listeners(EventListeners):
    """Listeners of the events of Planton, called in the order in which they were added."""

    def __init__(self) -> None:
        super().__init__(EVENT_TYPES)
        self._log = ErrorLog()

    async def attempted(self, event: AttemptEvent) -> None:
        for listener in self.of(AttemptEvent):
            try:
                await call_listener(listener, event)
            except Exception as error:
                await self.report(
                    ErrorEvent(task_name=event.task_name, error=error, stage="deliver")
                )

    async def report(self, event: ErrorEvent) -> None:
        """Call the listeners of errors, or log it when there are none or when they fail."""
        listeners = self.of(ErrorEvent)
        if not listeners:
            self._log.add(event)
        for listener in listeners:
            try:
                await call_listener(listener, event)
            except Exception as error:
                log_error(event)
                log_error(ErrorEvent(task_name=event.task_name, error=error, stage="deliver"))
