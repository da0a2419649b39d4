"""Relays and their consumers, on the storage and the broker in memory, in virtual time."""

import attrs
import pytest
import trio

from planton import (
    AlreadyRunningError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    StorageError,
    health,
)
from planton.testing import EventCollector, MemoryStorage
from planton_brokers import BrokerError, Relay
from planton_brokers.testing import MemoryBroker
from planton_executor import Executor


class Bench:
    """A dispatcher with a relay, and an executor that counts what it does."""

    def __init__(self, *, concurrency=10, seconds=0.0, **options):
        self.storage = MemoryStorage()
        self.broker = MemoryBroker()
        self.relay = Relay(self.broker, **options)
        self.executor = Executor(self.storage, concurrency=concurrency)
        self.done, self.running, self.most = [], 0, 0
        self.executor.handler("task")(self._handle)
        self._seconds = seconds

    async def _handle(self, work):
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(self._seconds)
        self.running -= 1
        self.done.append(work.instruction)

    def planton(self, *, lease=None, delay=10.0, **options):
        lease = self.relay.transit if lease is None else lease
        task = self.storage.queue_task("task", concurrency=100, delay=delay, lease=lease)
        return Planton(tasks=[task], storages=[self.storage], consumers=[self.relay], **options)

    async def enqueue(self, *names):
        for name in names:
            await self.storage.enqueue("task", name)

    async def statuses(self):
        return sorted((each.instruction, each.status) for each in await self.storage.find())


async def test_an_instruction_goes_through_the_broker_and_ends():
    """Claimed, confirmed, taken over, acknowledged, executed, reported."""
    one = Bench(seconds=1.0)
    async with one.planton():
        await one.enqueue("a", "b")
        await trio.sleep(1)

        assert 2 == len(one.broker.waiting)
        async with one.relay.consumer(one.executor):
            await trio.sleep(0.5)

            assert [] == list(one.broker.waiting)
            assert 2 == one.running
            await trio.sleep(1)
        assert [("a", "succeeded"), ("b", "succeeded")] == await one.statuses()
    assert ["a", "b"] == sorted(one.done)


async def test_a_consumer_takes_no_more_than_it_has_slots():
    """The rest stays in the broker, for consumers that have some."""
    one = Bench(concurrency=2, seconds=10)
    async with one.planton():
        await one.enqueue(*"abcde")
        async with one.relay.consumer(one.executor):
            await trio.sleep(5)

            assert (3, 2) == (len(one.broker.waiting), one.running)
            await trio.sleep(30)
    assert (2, list("abcde")) == (one.most, sorted(one.done))


async def test_a_message_that_came_three_times_is_executed_once():
    """The others are dropped: their receipt was taken over."""
    one = Bench(seconds=1)
    async with one.planton():
        await one.enqueue("a")
        await trio.sleep(1)
        one.broker.waiting *= 3
        async with one.relay.consumer(one.executor), Executor(one.storage) as _:
            await trio.sleep(5)
            one.broker.waiting.extend(one.broker.waiting)
    assert (["a"], 0) == (one.done, len(one.broker.waiting))


async def test_two_consumers_that_hold_the_same_message_execute_it_once():
    """At the same time."""
    one, other = Bench(seconds=1), Bench(seconds=1)
    other.executor.storage = one.storage
    async with one.planton():
        await one.enqueue("a")
        await trio.sleep(1)
        other.broker.waiting.extend(one.broker.waiting)
        async with one.relay.consumer(one.executor), other.relay.consumer(other.executor):
            await trio.sleep(5)
    assert ["a"] == one.done + other.done


async def test_a_partition_keeps_its_order_through_the_broker():
    """With two consumers, of which one is slow, and messages that come twice."""
    one, other = Bench(seconds=0.1), Bench(seconds=3.0)
    other.executor.storage, other.done = one.storage, one.done
    other.relay = Relay(one.broker)
    options = {"concurrency": 100, "lease": one.relay.transit, "partition_concurrency": 1}
    task = one.storage.queue_task("task", delay=10.0, **options)
    names = [f"{partition}{number}" for number in range(6) for partition in "abc"]
    async with Planton(tasks=[task], storages=[one.storage], consumers=[one.relay]):
        for name in names:
            await one.storage.enqueue("task", name, partition=name[0])
        async with one.relay.consumer(one.executor), other.relay.consumer(other.executor):
            for _ in range(60):
                await trio.sleep(0.5)
                one.broker.waiting.extend(one.broker.waiting)

    assert sorted(names) == sorted(one.done, key=lambda name: name[0])
    assert names != one.done


async def test_a_claim_is_renewed_from_its_take_over_on():
    """A handler may take longer than the lease of the consumer, and than the transit."""
    one = Bench(seconds=1000, transit=100)
    async with one.planton():
        await one.enqueue("a")
        async with one.relay.consumer(one.executor, lease=30):
            await trio.sleep(1010)

            assert [("a", "succeeded")] == await one.statuses()
    assert ["a"] == one.done


async def test_a_message_that_is_no_event_is_told_once_and_dropped(caplog):
    """Whatever it is; those after it are executed."""
    one = Bench()
    bad = [b"\xff", "", "[]", '{"task_name": "task"}', "[" * 100_000, '{"a": 1}']
    event = InstructionEvent(task_name="task", instruction="x")
    bad += [attrs.evolve(event, receipt=receipt).to_json() for receipt in (None, "", "9" * 30)]
    bad += [attrs.evolve(event, receipt=f"1.{2**63}").to_json()] * 50
    bad += [attrs.evolve(event, task_name="unknown", receipt="strange").to_json()]
    async with one.planton():
        await one.enqueue("a")
        await trio.sleep(1)
        one.broker.waiting.extendleft(attrs.evolve(one.broker.waiting[0], body=b) for b in bad)
        async with one.relay.consumer(one.executor):
            await trio.sleep(5)
    assert (["a"], 0) == (one.done, len(one.broker.waiting))
    assert len(caplog.records) < 10


async def test_a_message_without_a_handler_is_tried_again_later_and_not_for_ever(caplog):
    """Another consumer may have one; at last it ends as dead, with the reason."""
    one = Bench()
    one.executor = Executor(one.storage)
    one.executor.handler("another")(lambda work: None)
    async with one.planton():
        await one.enqueue("a")
        async with one.relay.consumer(one.executor):
            await trio.sleep(30)

            assert [("a", "queued")] == await one.statuses()
            await trio.sleep(600)
        (record,) = await one.storage.find()
    assert "dead" == record.status
    assert "no handler" in record.error
    assert 1 == sum("no handler" in each.message for each in caplog.records)


async def test_while_the_broker_is_away_nothing_is_claimed_and_all_name_it(caplog):
    """The log says it once and sums up; back again, it goes on within two seconds."""
    one = Bench()
    planton = one.planton(delay=1.0)
    async with planton:
        await one.enqueue("a")
        await trio.sleep(2)
        one.broker.is_away = True
        await one.enqueue("b", "c", "d")
        await trio.sleep(300)

        problem = "broker in memory: ConnectionRefusedError: it is away"
        assert problem in planton.explain("task")[0]
        assert any(problem in warning for warning in health(planton).warnings)
        assert {"queued": 3, "running": 1} == await counts(one.storage)
        lines = [each for each in caplog.records if "is away" in each.getMessage()]
        assert 1 <= len(lines) <= 8
        one.broker.is_away = False
        await trio.sleep(2)

        assert 4 == len(one.broker.waiting)
        assert not any(problem in warning for warning in health(planton).warnings)


async def counts(storage):
    found = [each.status for each in await storage.find()]
    return {status: found.count(status) for status in found}


async def test_what_the_broker_does_not_confirm_is_released_with_pauses():
    """It is not lost, and not tried in a hot loop."""
    one = Bench()
    one.broker.refuses = OSError("the queue is full")
    planton = one.planton(delay=0.5)
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await one.enqueue("a")
        await trio.sleep(60)

        assert 3 <= len(seen.events) <= 12
        assert {BrokerError} == {type(error) for error in seen.errors}
        one.broker.refuses = None
        await trio.sleep(60)
        assert 1 == len(one.broker.waiting)


async def test_a_broker_that_does_not_answer_in_time_is_away():
    """What was sent is released: its message has a receipt of the past then."""
    one = Bench(timeout=2.0)
    planton = one.planton()
    async with planton:
        await trio.sleep(1)
        one.broker.latency = 100.0
        await one.enqueue("a")
        await trio.sleep(3)

        assert [("a", "queued")] == await one.statuses()
        assert "not confirmed within 2 s" in planton.explain("task")[-1]
        await trio.sleep(10)
        assert "cannot be connected to within 2 s" in planton.explain("task")[0]
        one.broker.latency = 0.0
        async with one.relay.consumer(one.executor):
            await trio.sleep(5)
    assert ["a"] == one.done


async def test_messages_that_one_connection_lost_cost_one_new_connection():
    """Those that are told of it later do not end the new one."""
    one = Bench(timeout=2.0)
    one.broker = one.relay.broker = CountsConnections()

    async def send(receipt):
        with pytest.raises(BrokerError, match="not confirmed within 2 s"):
            await one.relay.submit(
                InstructionEvent(task_name="task", instruction=receipt, receipt=receipt)
            )

    async with one.planton(), trio.open_nursery() as nursery:
        one.broker.latency = 100.0
        nursery.start_soon(send, "1.1")
        await trio.sleep(1)
        nursery.start_soon(send, "2.2")
        await trio.sleep(1.2)
        one.broker.latency = 0.0
        await trio.sleep(30)

    assert 2 == one.broker.connections


class CountsConnections(MemoryBroker):
    connections = 0

    def connect(self):
        self.connections += 1
        return super().connect()


async def test_what_is_not_confirmed_at_the_stop_is_released():
    """Within the grace period."""
    one = Bench(timeout=100.0)
    async with one.storage:
        planton = one.planton(grace=5)
        async with planton:
            await trio.sleep(1)
            one.broker.latency = 50.0
            await one.enqueue("a")
            await trio.sleep(1)
            began = trio.current_time()

        assert trio.current_time() - began <= 5
        assert [("a", "queued")] == await one.statuses()


async def test_a_lease_that_is_shorter_than_the_transit_is_refused():
    """The message would be delivered again while it waits in the broker."""
    one = Bench(transit=100.0)
    planton = one.planton(lease=60)
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await one.enqueue("a")
        await trio.sleep(1)

    assert 0 == len(one.broker.waiting)
    assert "lease=relay.transit" in str(seen.errors[0])


async def test_claims_without_a_receipt_are_refused():
    """Nobody could take them over."""
    one = Bench()
    async with one.planton():
        with pytest.raises(InvalidArgumentError, match="receipt"):
            await one.relay.submit(InstructionEvent(task_name="task", instruction="a"))


async def test_a_relay_takes_the_tasks_that_it_is_given():
    """Another consumer takes the others."""
    one = Bench(tasks=["other"])

    assert one.relay.capacity("task") is None
    with pytest.raises(BrokerError, match="not connected"):
        one.relay.capacity("other")
    with pytest.raises(BrokerError, match="not connected"):
        await one.relay.submit(
            InstructionEvent(task_name="other", instruction="a", receipt="1.1", lease=3600.0)
        )


async def test_a_relay_serves_one_planton():
    """A second one needs a relay of its own."""
    one = Bench()
    async with one.planton() as planton:
        with pytest.raises(AlreadyRunningError):
            await one.relay.serve(planton)


@pytest.mark.parametrize(
    ("options", "name"),
    (
        ({"broker": "amqp://localhost"}, "broker"),
        ({"tasks": "task"}, "tasks"),
        ({"tasks": [5]}, "task_name"),
        ({"transit": 0}, "transit"),
        ({"timeout": "soon"}, "timeout"),
    ),
)
def test_a_relay_of_what_makes_no_sense_is_refused(options, name):
    """Named, before anything begins."""
    with pytest.raises(InvalidArgumentError, match=name):
        Relay(**{"broker": MemoryBroker(), **options})


async def test_a_storage_that_is_away_loses_no_message(monkeypatch):
    """It is asked again until it answers; the message is acknowledged only then."""
    one = Bench()
    async with one.planton():
        await one.enqueue("a")
        await trio.sleep(1)
        take_over, failures = one.storage.take_over, []

        async def failing(*arguments, **options):
            if len(failures) < 5:
                failures.append(1)
                raise StorageError("memory", "away")
            return await take_over(*arguments, **options)

        monkeypatch.setattr(one.storage, "take_over", failing)
        async with one.relay.consumer(one.executor):
            await trio.sleep(10)
    assert ["a"] == one.done


async def test_leaving_a_consumer_drains_it():
    """What runs ends; what is in the broker stays there."""
    one = Bench(concurrency=1, seconds=3)
    async with one.planton():
        await one.enqueue("a", "b")
        async with one.relay.consumer(one.executor):
            await trio.sleep(1)

        assert (["a"], 1) == (one.done, len(one.broker.waiting))


async def test_an_error_of_the_block_leaves_a_consumer_as_it_is():
    """Not within a group."""
    one = Bench()
    with pytest.raises(ZeroDivisionError):
        async with one.storage, one.relay.consumer(one.executor):
            raise ZeroDivisionError


async def test_a_consumer_connects_again():
    """And says once that the broker is away."""
    one = Bench()
    async with one.planton():
        async with one.relay.consumer(one.executor):
            one.broker.is_away = True
            await trio.sleep(100)
            one.broker.is_away = False
            await one.enqueue("a")
            await trio.sleep(2)
    assert ["a"] == one.done


async def test_an_executor_on_callbacks_cannot_consume():
    """There is nothing to take a claim over with."""
    from planton_executor import Callbacks

    with pytest.raises(InvalidArgumentError, match="storage"):
        async with Relay(MemoryBroker()).consumer(Executor(Callbacks())):
            pass


async def test_what_waits_for_a_slot_when_a_consumer_ends_is_given_back():
    """The slot that it was taken for was taken by another meanwhile."""
    one = Bench(concurrency=1, seconds=5)
    one.storage = one.executor.storage = MemoryStorage(latency=0.5)
    planton = one.planton()
    async with planton:
        await one.enqueue("a")
        await trio.sleep(5)
        await one.storage.enqueue("other", "b")
        one.executor.handler("other")(one._handle)
        events = []
        other = Planton(tasks=[one.storage.queue_task("other")])
        other.on(InstructionEvent, events.append)
        await other.attempt("other")
        async with one.relay.consumer(one.executor):
            await trio.sleep(0.2)
            await one.executor.submit(events[0])
            await trio.sleep(2)

            assert [("a", "running"), ("b", "running")] == await one.statuses()
            assert 0 == len(one.broker.waiting)
        await trio.sleep(2)

        assert 1 == len(one.broker.waiting), "it was claimed, and sent, again"
    assert ["b"] == one.done


class SendsOnly(MemoryBroker):
    """One whose own workers consume, as Celery's."""

    workers = "run its own workers"


async def test_a_broker_with_workers_of_its_own_has_no_consumer_here():
    """Refused at once, with what to do; not a loop of errors."""
    with pytest.raises(InvalidArgumentError, match="run its own workers"):
        async with Relay(SendsOnly()).consumer(Executor(MemoryStorage())):
            """Never."""
