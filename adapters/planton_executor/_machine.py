"""Work in steps: from one stored state to the next, until it is done or to go on later."""

import math
from collections.abc import Mapping
from typing import Any, cast

import attrs
import cattrs
import trio

from planton.storage import to_count, to_json
from planton_executor._errors import StateError
from planton_executor._events import AdvancedEvent
from planton_executor._functions import call
from planton_executor._handlers import Host
from planton_executor._run import RELEASE, End, Run
from planton_executor._step import Done, Later, Step, StepContext, Then
from planton_executor._terms import Terms


@attrs.frozen(eq=False)
class Machine:
    """The handler of a task whose work is done in steps.

    Attributes:
        name: Of the task, and of the machine in the stored state.
        steps: By the names of their classes.
        converter: Makes JSON of steps, and steps of JSON.
        resources: Given to every step.
        timeout: Seconds that one step may take.
    """

    name: str
    steps: Mapping[str, type[Step]]
    converter: cattrs.Converter
    resources: Any
    timeout: float | None

    @property
    def terms(self) -> Terms:
        """For as long as it is not known which step it is."""
        return Terms(timeout=self.timeout)

    async def call(self, run: Run, host: Host) -> Any:
        """Take step after step; return the result, or what is to be stored instead."""
        step = self.load(run.work.payload)
        run.begin(self._terms(step), run.tries)
        while True:
            context = StepContext(work=run.work, tries=run.tries, resources=self.resources)
            answer: object = await call(step.step, context, run, host.limiter)
            if isinstance(answer, Done):
                return answer.result
            step, end = self._following(step, answer)
            if end.kind == "postpone":
                return end
            if not await self._advance(run, end, host) or host.is_draining:
                return RELEASE
            run.begin(self._terms(step), 1)

    async def _advance(self, run: Run, end: End, host: Host) -> bool:
        """Store where the work is now; what is being stored is not broken off."""
        assert run.scope is not None, "a worker has it"
        run.is_storing, run.scope.deadline = True, math.inf
        try:
            is_ours = await host.store(run, end)
        finally:
            run.is_storing = False
        if not is_ours:
            run.break_off("lost")
            return False
        run.claimed_at = trio.current_time()  # its time limit begins anew
        event = AdvancedEvent(work=run.work, state=end.about, run_in=None)
        await host.listeners.tell(event)
        return True

    def _following(self, step: Step, answer: object) -> tuple[Step, End]:
        if not isinstance(answer, Then | Later):
            problem = (
                f"step {type(step).__name__} returned {answer!r}: return then(step), "
                "later(step, seconds) or done(result)"
            )
            raise StateError(self.name, problem)
        state = self.state(answer.step)
        values = (to_json("state", state), self._terms(answer.step).retries)
        if isinstance(answer, Later):
            return answer.step, End("postpone", (*values, answer.seconds), state)
        return answer.step, End("advance", values, state)

    def _terms(self, step: Step) -> Terms:
        return Terms(
            timeout=self.timeout,
            retries=retry_limit(step),
            retry_delay=_setting(step, "retry_delay"),
        )

    def state(self, step: Step) -> dict[str, Any]:
        """Return a step as it is stored.

        Raises:
            StateError: If it is no step of this machine, or holds what is not JSON.
        """
        name = type(step).__name__
        if self.steps.get(name) is not type(step):
            raise StateError(self.name, f"{step!r} is none of its steps: {self._known()}")
        try:
            state = {self.name: {name: self.converter.unstructure(step)}}
            to_json("state", state)
        except Exception as error:
            raise StateError(self.name, f"the state of {step!r} is not JSON: {error}") from error
        return state

    def load(self, state: Any) -> Step:
        """Return the step of a stored state.

        Raises:
            StateError: If there is no such step, or its class no longer fits.
        """
        match state:
            case {self.name: {**steps}} if len(state) == len(steps) == 1:
                ((step_name, fields),) = steps.items()
                name = str(step_name)
            case _:
                form = f"{{{self.name!r}: {{<step>: {{<field>: …}}}}}}"
                raise StateError(self.name, f"its state is {state!r:.200}, not of the form {form}")
        if name not in self.steps:
            raise StateError(self.name, f"it has no step {name!r}: {self._known()}")
        try:
            return self.converter.structure({} if fields is None else fields, self.steps[name])
        except Exception as error:
            problems = "; ".join(cattrs.transform_error(error, path=name))
            raise StateError(self.name, f"its state no longer fits: {problems}") from error

    def _known(self) -> str:
        return f"it has {', '.join(sorted(self.steps))}"


def retry_limit(step: Step) -> int:
    """Return how often a step may be tried again."""
    return to_count("retry_limit", _setting(step, "retry_limit"))


def _setting(step: Step, name: str) -> Any:
    """Return what the class says, or the instance if it is a field.

    Not of the instance in any case: that would make a method of a function.
    """
    fields: Any = attrs.fields(cast(type[attrs.AttrsInstance], type(step)))
    is_field = any(field.name == name for field in fields)
    return getattr(step if is_field else type(step), name)
