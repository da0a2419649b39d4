"""Work in steps: from one stored state to the next, until it is done or to go on later."""

import inspect
from collections.abc import Iterable
from typing import Any, cast

import attrs
import cattrs
from cattrs.preconf.json import make_converter

from planton import InvalidArgumentError
from planton.storage import Storage, check_function, is_async, to_count, to_json, to_name
from planton_executor._errors import StateError
from planton_executor._executor import Executor
from planton_executor._functions import Host, call_in_thread
from planton_executor._run import RELEASE, End, Run, Terms
from planton_executor._step import Done, Later, Step, StepContext, Then


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
        converter: cattrs.Converter | None = None,
    ) -> None:
        self.name = to_name(name)
        if not isinstance(executor.storage, Storage):
            remedy = "steps need one that has a storage"
            raise InvalidArgumentError("executor", executor, remedy)
        self._storage = executor.storage
        self._steps = {step.__name__: step for step in map(_checked, steps)}
        self._converter = converter or make_converter(forbid_extra_keys=True)
        self._resources = resources
        self.terms = Terms(timeout=timeout)  # for as long as it is not known which step it is
        executor.add_handler(self.name, self)

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
        options["retries"] = _retry_limit(step)
        return await self._storage.enqueue(self.name, instruction, payload=state, **options)

    def state(self, step: Step) -> dict[str, Any]:
        """Return a step as it is stored, for those who queue it in other ways.

        Raises:
            StateError: If it is no step of this machine, or holds what is not JSON.
        """
        name = type(step).__name__
        if self._steps.get(name) is not type(step):
            raise StateError(self.name, f"{step!r} is none of its steps: {self._known()}")
        try:
            state = {self.name: {name: self._converter.unstructure(step)}}
            to_json("state", state)
        except Exception as error:
            raise StateError(self.name, f"the state of {step!r} is not JSON: {error}") from error
        return state

    def load(self, state: Any) -> Step:
        """Return the step of a stored state, such as the payload of an `InstructionRecord`.

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
        if name not in self._steps:
            raise StateError(self.name, f"it has no step {name!r}: {self._known()}")
        try:
            return self._converter.structure({} if fields is None else fields, self._steps[name])
        except Exception as error:
            problems = "; ".join(cattrs.transform_error(error, path=name))
            raise StateError(self.name, f"its state no longer fits: {problems}") from error

    async def call(self, run: Run, host: Host) -> Any:
        """Take step after step, as a handler; return the result, or what is to be stored."""
        step = self.load(run.work.payload)
        run.begin(self._terms(step), run.tries)
        while True:
            context = StepContext(work=run.work, tries=run.tries, resources=self._resources)
            take: Any = step.step
            if is_async(take):
                answer: object = await take(context)
            else:
                answer = await call_in_thread(take, context, run, host.limiter)
            if isinstance(answer, Done):
                return answer.result
            step, end = self._following(step, answer)
            if end.kind == "postpone":
                return end
            if not await host.advance(run, end):
                return RELEASE
            run.begin(self._terms(step), 1)

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
            timeout=self.terms.timeout,
            retries=_retry_limit(step),
            retry_delay=_setting(step, "retry_delay"),
        )

    def _known(self) -> str:
        return f"it has {', '.join(sorted(self._steps))}"


def _checked(step: Any) -> type[Step]:
    if not (isinstance(step, type) and issubclass(step, Step) and "__attrs_attrs__" in vars(step)):
        remedy = "give classes derived from Step and decorated with @attrs.frozen"
        raise InvalidArgumentError("steps", step, remedy)
    if inspect.isabstract(step):
        remedy = "give it a method `step(self, context)`, async or not, which returns what is next"
        raise InvalidArgumentError("steps", step, remedy)
    check_function("steps", step.step, 2)
    return step


def _retry_limit(step: Step) -> int:
    """Return how often a step may be tried again."""
    return to_count("retry_limit", _setting(step, "retry_limit"))


def _setting(step: Step, name: str) -> Any:
    """Return what the class says, or the instance if it is a field.

    Not of the instance in any case: that would make a method of a function.
    """
    fields: Any = attrs.fields(cast(type[attrs.AttrsInstance], type(step)))
    is_field = any(field.name == name for field in fields)
    return getattr(step if is_field else type(step), name)
