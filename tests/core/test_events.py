"""Listeners, streams, and events as JSON."""

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from planton import (
    AttemptEvent,
    Claim,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    UndeliveredInstructionsError,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


def test_on_is_a_function_and_a_decorator(bench):
    """It returns the listener either way."""
    planton = bench().planton

    def listener(event):
        raise AssertionError

    assert listener is planton.on(InstructionEvent, listener)
    assert listener is planton.on(ErrorEvent)(listener)


async def test_off_ends_it(bench):
    """The others go on."""
    one = bench(["a"], ["b"])
    seen = []
    one.planton.on(InstructionEvent, seen.append)
    async with one.planton:
        await trio.sleep(1.5)
        one.planton.off(InstructionEvent, seen.append)
        await trio.sleep(1)

    assert ["a"] == [event.instruction for event in seen]
    assert ["a", "b"] == one.seen.instructions


def test_off_of_a_stranger_is_an_error(bench):
    """So is an event type that there is not, and a listener that cannot be called."""
    planton = bench().planton
    with pytest.raises(InvalidArgumentError, match="listener"):
        planton.off(InstructionEvent, print)
    with pytest.raises(InvalidArgumentError, match="InstructionEvent"):
        planton.on(str, print)
    with pytest.raises(InvalidArgumentError, match="listener"):
        planton.on(InstructionEvent, 5)


async def test_a_stream_gives_events_in_order_and_ends_with_planton(bench):
    """`async for` needs no bookkeeping."""
    one = bench(["a", "b"], ["c"], concurrency=2)
    read = []

    async def consume(*, task_status):
        async with one.planton.events(InstructionEvent) as stream:
            task_status.started()
            async for event in stream:
                read.append(event.instruction)

    async with trio.open_nursery() as nursery:
        await nursery.start(consume)
        await one.run_for(2.5)

    assert ["a", "b", "c"] == read


async def test_a_stream_of_all_types(bench):
    """Nothing named is everything."""
    one = bench(["a"], OSError())
    kinds = []
    async with one.planton.events(buffer=10) as stream:
        await one.run_for(2.5)
        async for event in stream:
            kinds.append(type(event))

    assert [InstructionEvent, AttemptEvent, ErrorEvent, AttemptEvent] == kinds


async def test_a_stream_that_is_not_read_holds_back_its_task(bench):
    """No more is claimed than can be handed over."""
    one = bench(["a"], ["b"], ["c"])
    async with one.planton, one.planton.events(InstructionEvent) as stream:
        await trio.sleep(5.5)

        assert 1 == len(one.schedule.requests)
        assert "a" == (await stream.receive()).instruction
        await trio.sleep(1.5)

        assert 2 == len(one.schedule.requests)
        assert "b" == (await stream.receive()).instruction


async def test_what_waits_in_the_buffer_of_a_stream_is_given_back(bench):
    """Left unread is not lost."""
    released = []

    async def release(claims):
        released.extend(claims)

    claims = [Claim(instruction=name, receipt=f"r-{name}") for name in "abc"]
    one = bench(claims, concurrency=3, release=release)
    async with one.planton:
        async with one.planton.events(InstructionEvent, buffer=5) as stream:
            await trio.sleep(1.5)

            assert "a" == (await stream.receive()).instruction
        await trio.sleep(0.5)

    assert claims[1:] == released


async def test_what_waits_in_the_buffer_is_given_back_after_the_run_too(bench):
    """The stream may outlive the run."""
    released = []

    async def release(claims):
        released.extend(claims)

    one = bench(["a"], release=release)
    async with one.planton.events(InstructionEvent, buffer=5):
        await one.run_for(1.5)

    assert ["a"] == [claim.instruction for claim in released]


async def test_without_release_unread_events_are_delivered_to_others(bench):
    """The next attempt does, before it claims more."""
    one = bench(["a"])
    del one.seen.events[:]
    one.planton.off(InstructionEvent, one.seen._collect)
    late = []
    async with one.planton:
        async with one.planton.events(InstructionEvent, buffer=5):
            await trio.sleep(1.5)
        one.planton.on(InstructionEvent, late.append)
        await trio.sleep(1)

    assert ["a"] == [event.instruction for event in late]


async def test_a_stream_left_while_an_event_waits_for_it_loses_nothing(bench):
    """Without release the instruction is kept and delivered again."""
    one = bench(["a"])
    async with one.planton:
        async with one.planton.events(InstructionEvent):
            await trio.sleep(1.5)
        await trio.sleep(2)

    assert ["a", "a"] == one.seen.instructions
    assert isinstance(one.seen.errors[0], UndeliveredInstructionsError)


async def test_unread_events_of_a_task_that_is_gone_are_reported(bench):
    """Nobody can take them back."""
    one = bench(["a"])
    async with one.planton.events(InstructionEvent, buffer=5):
        await one.run_for(1.5)
        one.planton.unregister("task")

    assert ("a",) == one.seen.errors[0].instructions


async def test_a_stream_that_is_left_during_the_drain_gives_back_what_it_did_not_read(bench):
    """The drain takes care of it."""
    released = []

    async def release(claims):
        released.extend(claim.instruction for claim in claims)

    one = bench(["a"], lambda _: trio.sleep(5), release=release)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        async with one.planton.events(InstructionEvent, ErrorEvent, buffer=5):
            await trio.sleep(2.5)
            nursery.start_soon(one.planton.terminate)
            await trio.sleep(1)

    assert ["a"] == released


async def test_errors_that_wait_in_a_buffer_are_nobodys_loss(bench):
    """Only instructions are given back."""
    one = bench(OSError())
    async with one.planton, one.planton.events(ErrorEvent, buffer=5):
        await trio.sleep(1.5)

    assert 1 == len(one.seen.errors)


async def test_events_other_than_instructions_may_stay_unread(bench):
    """A stream of errors that is left early is nobody's loss."""
    one = bench(OSError(), OSError())
    async with one.planton:
        async with one.planton.events(ErrorEvent):
            await trio.sleep(1.5)
        await trio.sleep(1.5)

    assert [OSError, OSError] == [type(error) for error in one.seen.errors]


@pytest.mark.parametrize("buffer", (-1, 1.5, True))
async def test_a_stream_refuses_what_makes_no_sense(bench, buffer):
    """Before anything is changed."""
    planton = bench().planton
    with pytest.raises(InvalidArgumentError, match="buffer"):
        async with planton.events(InstructionEvent, buffer=buffer):
            pass  # pragma: no cover
    with pytest.raises(InvalidArgumentError, match="event_type"):
        async with planton.events(InstructionEvent, str):
            pass  # pragma: no cover


# JSON


@given(st.text(), st.none() | st.text(), JSON, st.integers(1, 9))
def test_an_instruction_event_survives_a_broker(instruction, receipt, payload, delivery):
    """What goes in comes out."""
    event = InstructionEvent(
        task_name="task",
        instruction=instruction,
        receipt=receipt,
        payload=payload,
        delivery=delivery,
    )

    assert event == InstructionEvent.from_json(event.to_json())


def test_members_that_are_not_known_are_ignored():
    """A newer dispatcher may say more."""
    text = json.dumps({"task_name": "t", "instruction": "i", "colour": "red"})

    assert InstructionEvent(task_name="t", instruction="i") == InstructionEvent.from_json(text)


def test_a_payload_that_is_no_json_is_an_error():
    """It names the payload."""
    event = InstructionEvent(task_name="t", instruction="i", payload={1, 2})
    with pytest.raises(InvalidArgumentError, match="payload"):
        event.to_json()


@pytest.mark.parametrize(
    ("text", "argument"),
    (
        ("{", "text"),
        ("[]", "text"),
        ("{}", "task_name"),
        ('{"task_name": "t", "instruction": 5}', "instruction"),
        ('{"task_name": "t", "instruction": "i", "delivery": 0}', "delivery"),
        ('{"task_name": "t", "instruction": "i", "receipt": 7}', "receipt"),
    ),
)
def test_text_that_is_no_event_is_an_error(text, argument):
    """It names the member."""
    with pytest.raises(InvalidArgumentError) as caught:
        InstructionEvent.from_json(text)

    assert argument == caught.value.argument
