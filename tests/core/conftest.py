"""The core is tested in virtual time, and under many orders of trio's tasks.

Of the tasks that can go on trio takes a random one first, and nothing may depend on that. Each test
runs under an order of its own, which a failure names; `PLANTON_TRIO_SEED=…` repeats it, and
`PLANTON_TRIO_SEEDS=200 pytest tests/core` runs each test under 200 of them.
"""

import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from trio._core import _run  # no public way to repeat an order
from trio.abc import Clock, Instrument

from planton import Planton, ScheduleRequest, Task
from planton.testing import EventCollector

HERE = Path(__file__).parent
SEEDS = range(int(os.environ.get("PLANTON_TRIO_SEEDS", "1")))


def run_in_virtual_time(
    function: Callable[[], Any], *, clock: Clock | None, instruments: Sequence[Instrument]
) -> Any:
    clock = clock or trio.testing.MockClock(autojump_threshold=0)
    return trio.run(function, clock=clock, instruments=instruments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every async test of this folder the autojump clock, without its asking for it."""
    for item in items:
        is_async = inspect.iscoroutinefunction(getattr(item, "function", None))
        has_own_run = any(mark.args == ("real",) for mark in item.iter_markers("trio"))
        if is_async and HERE in item.path.parents and not has_own_run:
            item.add_marker(pytest.mark.trio(run=run_in_virtual_time), append=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every async test of this folder once a seed."""
    is_here = HERE in Path(metafunc.module.__file__).parents
    if is_here and len(SEEDS) > 1 and inspect.iscoroutinefunction(metafunc.function):
        metafunc.parametrize("_trio_order", SEEDS, indirect=True)


@pytest.fixture(autouse=True)
def _trio_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let trio run its tasks in an order that a seed decides."""
    chosen = os.environ.get("PLANTON_TRIO_SEED") or random.SystemRandom().randrange(2**32)
    seed = int(getattr(request, "param", chosen))
    print(f"order of trio's tasks: PLANTON_TRIO_SEED={seed}")
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    yield
    _run._ALLOW_DETERMINISTIC_SCHEDULING = False  # type: ignore[misc]


class Script:
    """A `schedule` that plays back a list of answers and keeps its requests with their times.

    An answer that is an exception is raised, one that is callable is called with the request;
    after the last there is nothing due.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[ScheduleRequest] = []
        self.times: list[float] = []

    async def __call__(self, request: ScheduleRequest) -> Any:
        self.requests.append(request)
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if self.answers else []
        if callable(answer):
            answer = answer(request)
            if hasattr(answer, "__await__"):
                answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bench:
    """A Planton with one task, its script, what is active, and all its events."""

    def __init__(self, *answers: Any, **options: Any) -> None:
        self.schedule = Script(*answers)
        self.active: list[str] = []
        planton_options = {
            key: options.pop(key)
            for key in ("grace", "services", "storages", "consumers")
            if key in options
        }
        options.setdefault("get_active_instructions", self.get_active_instructions)
        options.setdefault("schedule", self.schedule)
        options.setdefault("delay", 1.0)
        self.task = Task(**{"name": "task", **options})
        self.planton = Planton(tasks=[self.task], **planton_options)
        self.seen = EventCollector(self.planton)

    async def get_active_instructions(self, task_name: str) -> list[str]:
        return list(self.active)

    async def run_for(self, seconds: float) -> None:
        """Run for some seconds of virtual time, then terminate."""
        async with self.planton:
            await trio.sleep(seconds)


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def script() -> Callable[..., Script]:
    return Script
