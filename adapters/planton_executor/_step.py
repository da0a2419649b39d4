"""What users write: steps, and what comes after each."""

import abc
from collections.abc import Awaitable
from typing import Any, ClassVar, TypeAlias

import attrs

from planton import InvalidArgumentError
from planton.storage import to_number
from planton_executor._events import Work
from planton_executor._run import RetryDelay


@attrs.frozen(kw_only=True)
class StepContext:
    """What a step is called with.

    Attributes:
        work: The instruction whose step it is.
        tries: How often this step was begun, this time included; above 1 it may have been done
            before, in part or in full.
        resources: What `Steps(resources=…)` was given.
    """

    work: Work
    tries: int
    resources: Any


class Step(abc.ABC):
    """A step of some work: a frozen attrs class whose fields are its state.

    Attributes:
        retry_limit: How often it is tried again when it raises.
        retry_delay: Seconds until the next try, or a function of how many came before, such as
            those of `planton.delays`.

    Examples:
        A step that reads a file, and hands on what it read::

            @attrs.frozen
            class ReadName(Step):
                filename: str
                retry_limit = 5

                async def step(self, context):
                    name = await trio.Path(self.filename).read_text()
                    return then(SayHello(name.strip()))
    """

    __slots__ = ()
    retry_limit: ClassVar[int] = 0
    retry_delay: ClassVar[RetryDelay] = 1.0

    @abc.abstractmethod
    def step(self, context: Any) -> "Next | Awaitable[Next]":
        """Do it, and return `then(step)`, `later(step, seconds)` or `done(result)`.

        An async one runs on trio, a plain one in a worker thread. It may be done again after a
        crash, so it should bear that.
        """


def _to_seconds(value: float) -> float:
    return to_number("seconds", value)


def _checked(_: object, __: object, step: Any) -> None:
    if not isinstance(step, Step):
        raise InvalidArgumentError("step", step, "give an instance of a class of planton's Step")


@attrs.frozen
class Then:
    """Go on with another step, at once and under the same claim.

    Raises:
        InvalidArgumentError: If it is no step.
    """

    step: Step = attrs.field(validator=_checked)


@attrs.frozen
class Later:
    """Go on with another step in some seconds; until then no slot is held, by no process.

    Raises:
        InvalidArgumentError: If it is no step, or the seconds are no finite number of at least 0.
    """

    step: Step = attrs.field(validator=_checked)
    seconds: float = attrs.field(converter=_to_seconds)


@attrs.frozen
class Done:
    """End the work as succeeded, with any JSON as its result."""

    result: Any = None


Next: TypeAlias = Then | Later | Done
then, later, done = Then, Later, Done
