"""Promises about the fleet: who dispatches, what they say of their tasks, how they are stopped."""

from datetime import timedelta
from typing import Any

import attrs

from planton._planton import Planton
from planton._task import Task
from planton.storage import FORGOTTEN_AFTER, LOST_AFTER, TaskReport
from planton.storage._fleet import new_registration
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks

(STATUS,) = Planton(tasks=[Task(name="task", schedule=lambda _: [], cap="strict")]).status()


async def enter(storage: Any, host: str = "host") -> str:
    """Register a dispatcher; its name."""
    registration = attrs.evolve(new_registration(), host=host, pid=7, version="1.0")
    await storage.registry.register(registration)
    return registration.id


async def beat(storage: Any, dispatcher_id: str, *told: str, gone: tuple[str, ...] = ()) -> str:
    """Let a dispatcher say that it lives, with a report about some tasks."""
    reports = {name: TaskReport.to_text(STATUS, ["first", "last"], ["eu"]) for name in told}
    return str(await storage.registry.beat(dispatcher_id, 5, reports, gone))


class FleetPromises(Hooks):
    """Any process can see the dispatchers of all."""

    async def test_a_beat_tells_that_a_dispatcher_lives(self, storage: Any, other: Any) -> None:
        """Without one for a while it is lost; until it is heard of again."""
        dispatcher = await enter(storage)
        await self.advance(storage, LOST_AFTER + 1)
        (lost,) = await other.dispatchers()
        answer = await beat(storage, dispatcher)
        (found,) = await other.dispatchers()

        assert ("lost", "go on", "running") == (lost.state, answer, found.state)
        assert lost.silent_for > LOST_AFTER > found.silent_for >= 0
        assert (0, 5) == (lost.tasks, found.tasks)
        assert lost.seen_at < found.seen_at
        assert ("host", 7, "1.0") == (found.host, found.pid, found.version)

    async def test_the_dead_are_forgotten(self, storage: Any, other: Any) -> None:
        """By those that live, with what they said, after ten minutes; one that wakes up is not."""
        dead, asleep = await enter(storage), await enter(storage)
        for each in (dead, asleep):
            await beat(storage, each, "task")
        await self.advance(storage, FORGOTTEN_AFTER + 1)

        assert {dead, asleep} == {each.id for each in await storage.dispatchers()}
        assert "go on" == await beat(other, asleep)
        assert [asleep] == [each.id for each in await storage.dispatchers()]
        assert [asleep] == [each.dispatcher_id for each in await storage.decisions()]
        assert "unknown" == await beat(storage, dead, "task")
        assert [asleep] == [each.dispatcher_id for each in await storage.decisions()]

    async def test_dispatchers_are_asked_to_stop(self, storage: Any, other: Any) -> None:
        """By name, or all that there are; asked twice they were asked the first time."""
        first, second = await enter(storage), await enter(storage)

        async def asked() -> dict[str, Any]:
            return {each.id: each.stop_requested_at for each in await storage.dispatchers()}

        assert [] == await storage.request_stop([])
        assert [first] == await other.request_stop([first, "nobody"])
        await self.advance(storage, 1)
        before = await asked()
        assert sorted([first, second]) == sorted(await other.request_stop())
        third = await enter(storage)
        after = await asked()
        states = {each.id: each.state for each in await other.dispatchers()}

        assert (True, None) == (before[first] is not None, before[second])
        assert before[first] == after[first] < after[second]
        assert {first: "stopping", second: "stopping", third: "running"} == states
        answers = [await beat(storage, each) for each in (first, second, third)]
        assert ["stop", "stop", "go on"] == answers

    async def test_a_dispatcher_is_known_until_it_ends(self, storage: Any, other: Any) -> None:
        """Then it is forgotten, with what it said; twice is once."""
        before = await do.clock(storage)
        first, second = await enter(storage, "a"), await enter(storage, "b")
        await beat(storage, first, "task")
        await beat(storage, second, "task")
        known = await other.dispatchers()
        for _ in range(2):
            await storage.registry.deregister(first)
        (left,) = await other.dispatchers()

        assert {"a", "b"} == {each.host for each in known}
        assert ("b", "running", None) == do.fields(left, "host state stop_requested_at")
        assert before <= left.started_at <= left.seen_at <= await do.clock(storage)
        assert [second] == [each.dispatcher_id for each in await other.decisions()]

    async def test_what_dispatchers_say_is_read_elsewhere(self, storage: Any, other: Any) -> None:
        """The last of it, of one task or of all, until a task is gone."""
        first, second = await enter(storage), await enter(storage)
        await beat(storage, first, "task", "other")
        await beat(storage, second, "task")
        await self.advance(storage, 60)
        await beat(storage, first, "task")
        now = await do.clock(storage)
        reports = {each.dispatcher_id: each for each in await other.decisions("task")}
        said = reports[first]

        assert {first, second} == reports.keys()
        assert ("first", "last") == said.decisions
        assert ("eu",) == said.tags
        assert STATUS == said.status
        assert now - said.reported_at < timedelta(seconds=30) < now - reports[second].reported_at
        assert [] == await other.decisions("unknown")
        assert 3 == len(await other.decisions())
        await beat(storage, first, gone=("task", "never reported"))
        assert {second} == {each.dispatcher_id for each in await other.decisions("task")}
