"""Events as a stream to iterate over."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from planton._errors import UndeliveredInstructionsError
from planton._events import Event, InstructionEvent, claim_of
from planton._loop.listeners import Listeners
from planton._task import Claim


@attrs.define(eq=False)
class Stream:
    """The sending end of a stream, which listens like any other listener.

    It waits until there is room, so a consumer that is slow holds back the tasks whose events
    it reads, and nothing else.
    """

    event_types: Sequence[type[Event]]
    listeners: Listeners
    send: "trio.MemorySendChannel[Any]"
    is_open: bool = False

    def open(self) -> None:
        for index, event_type in enumerate(self.event_types):
            try:
                self.listeners.add(event_type, self.listen)
            except Exception:
                for added in self.event_types[:index]:
                    self.listeners.remove(added, self.listen)
                raise
        self.is_open = True

    def close(self) -> None:
        """End the stream; what its reader has not read yet can still be read."""
        if self.is_open:
            self.is_open = False
            for event_type in self.event_types:
                self.listeners.remove(event_type, self.listen)
            self.send.close()

    async def listen(self, event: Event) -> None:
        try:
            await self.send.send(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if isinstance(event, InstructionEvent):
                raise UndeliveredInstructionsError(
                    event.task_name,
                    [event.instruction],
                    "the stream was left before it was read",
                    released=False,
                ) from error


def unread_claims(receive: "trio.MemoryReceiveChannel[Any]") -> dict[str, list[Claim]]:
    """Take what was sent and never read out of a stream; claims by task name."""
    claims: defaultdict[str, list[Claim]] = defaultdict(list)
    while True:
        try:
            event = receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return claims
        if isinstance(event, InstructionEvent):
            claims[event.task_name].append(claim_of(event))
