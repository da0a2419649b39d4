"""Work in steps, as users see it."""

import inspect
from collections.abc import Iterable
from typing import Any

from cattrs import Converter
from cattrs.preconf.json import make_converter

from planton import InvalidArgumentError
from planton.storage import Storage, to_name, to_number
from planton_executor._executor import Executor
from planton_executor._functions import is_generator, takes
from planton_executor._machine import Machine, retry_limit
from planton_executor._step import Step


class Steps:
    """Does the work of a queue task in steps, and resumes at the last one that was stored.

    Each step returns what comes next, with its state, and that is stored before it begins: after a
    crash the work goes on from there. A step that raises is tried again as its class says; after
    the last try the work rests as dead, with its error, and `storage.retry` lets it go on at that
    very step. State that fits no step, or a step that returns something else, ends it as failed,
    and it can be retried likewise.

    The storage keeps the state as the payload: `{"Greeter": {"ReadName": {"filename": "a.txt"}}}`.

    Args:
        executor: Runs the steps, one slot for each work that is under way.
        name: Of the task, and of the machine in the stored state.
        steps: The classes of the steps.
        resources: Given to every step, such as a client or a pool.
        timeout: Seconds that one step may take.
        converter: Makes JSON of steps and steps of JSON; by default one of cattrs that knows
            dates, bytes, enums and sets, and refuses fields that a class does not have.

    Raises:
        InvalidArgumentError: If an argument cannot be used, or the task has a handler.
    """

    def __init__(
        self,
        executor: Executor,
        name: str,
        steps: Iterable[type[Step]],
        *,
        resources: Any = None,
        timeout: float | None = None,
        converter: Converter | None = None,
    ) -> None:
        self.name = to_name(name)
        if not isinstance(executor.storage, Storage):
            remedy = "steps need one that has a storage"
            raise InvalidArgumentError("executor", executor, remedy)
        self._storage = executor.storage
        self._machine = Machine(
            name=self.name,
            steps={step.__name__: step for step in map(_checked, steps)},
            converter=converter or make_converter(forbid_extra_keys=True),
            resources=resources,
            timeout=None if timeout is None else to_number("timeout", timeout, above=0),
        )
        executor.add_handler(self.name, self._machine)

    async def enqueue(self, instruction: str, step: Step, **options: Any) -> bool:
        """Queue some work that begins with a step; False if it is queued already.

        Args:
            instruction: Names the work. Queued again while it is under way it begins anew as soon
                as it is given back or put off, from this step.
            step: Where to begin.
            **options: As of `Storage.enqueue`: priority, run_at, tags, timeout (of each step),
                connection.

        Raises:
            StateError: If it is no step of this machine, or holds what is not JSON.
            InvalidArgumentError: If another argument cannot be used.
            StorageError: If the database cannot be written.
        """
        state = self.state(step)
        options["retries"] = retry_limit(step)
        return await self._storage.enqueue(self.name, instruction, payload=state, **options)

    def state(self, step: Step) -> dict[str, Any]:
        """Return a step as it is stored, for those who queue it in other ways.

        Raises:
            StateError: If it is no step of this machine, or holds what is not JSON.
        """
        return self._machine.state(step)

    def load(self, state: object) -> Step:
        """Return the step of a stored state, such as the payload of an `InstructionRecord`.

        Raises:
            StateError: If there is no such step, or its class no longer fits.
        """
        return self._machine.load(state)


def _checked(step: Any) -> type[Step]:
    if not (isinstance(step, type) and issubclass(step, Step) and "__attrs_attrs__" in vars(step)):
        remedy = "give classes derived from Step and decorated with @attrs.frozen"
        raise InvalidArgumentError("steps", step, remedy)
    if inspect.isabstract(step) or is_generator(step.step) or not takes(step.step, 2):
        remedy = "give it a method `step(self, context)`, async or not, which returns what is next"
        raise InvalidArgumentError("steps", step, remedy)
    return step
