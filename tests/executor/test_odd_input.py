"""Odd handlers, errors and results: each harms only its own instruction."""

import asyncio
import os

import pytest
import trio

from planton_executor import FailedEvent, GiveUp, StartedEvent, SucceededEvent


class ApiError(Exception):
    """Its text cannot be made."""

    def __init__(self, code):
        self.code = code

    def __str__(self):
        return "code " + self.code


class ExitError(Exception):
    def __str__(self):
        raise SystemExit(3)


class RecursingError(Exception):
    def __str__(self):
        return str(self)


NAME = os.fsdecode(b"caf\xe9.txt")  # as os.listdir returns it


def kept_cancellation():
    """Return a `Cancelled` of a scope that is over."""

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                return error

    return trio.run(main)


class UnsplittableGroup(ExceptionGroup):
    """Its `derive` forgets an argument, so that it cannot be split."""

    def __new__(cls, code, errors):
        return super().__new__(cls, f"code {code}", errors)

    def derive(self, errors):
        return UnsplittableGroup(errors)


def wide_group():
    """To its bottom there are more ways than could be gone in a life."""
    error = ExceptionGroup("group", [ValueError("at the bottom"), KeyError("beside")])
    for _ in range(60):
        error = ExceptionGroup("group", [error, error])
    return error


def deep_group():
    """Deeper than Python recurses."""
    error = ValueError("at the bottom")
    for _ in range(5000):
        error = ExceptionGroup("group", [error, ValueError("beside")])
    return error


ERRORS = {
    "str raises": (lambda: ApiError(503), "ApiError"),
    "str exits": (ExitError, "ExitError"),
    "str recurses": (RecursingError, "RecursingError"),
    "exit": (lambda: SystemExit(2), "SystemExit: 2"),
    "generator exit": (GeneratorExit, "GeneratorExit"),
    "of asyncio": (lambda: asyncio.CancelledError("no loop"), "CancelledError: no loop"),
    "of another scope": (kept_cancellation, "Cancelled"),
    "surrogates": (lambda: ValueError(f"cannot read {NAME}"), "ValueError: cannot read caf"),
    "NUL": (lambda: ValueError("a\0b"), "ValueError: a\\x00b"),
    "huge": (lambda: ValueError("x" * 10**7), "ValueError: xxx"),
    "recursion": (RecursionError, "RecursionError"),
    "a group that cannot be split": (
        lambda: UnsplittableGroup(5, [ValueError(1), KeyError(2)]),
        "UnsplittableGroup: ValueError: 1; KeyError: 2",
    ),
    "a wide group": (wide_group, "ExceptionGroup: ValueError: at the bottom; KeyError: 'beside'"),
    "a deep group": (deep_group, "ExceptionGroup: ValueError: at the bottom"),
}


@pytest.mark.parametrize("is_async", (False, True))
@pytest.mark.parametrize("name", ERRORS)
async def test_whatever_a_handler_raises_is_its_failure(bench, name, is_async):
    """It is stored as well as it can be told, counted, and tried again; bystanders go on."""
    one = bench(concurrency=3)
    make, text = ERRORS[name]
    error = await trio.to_thread.run_sync(make)

    @one.executor.handler("task", retries=1)
    async def raise_it(work):
        raise error

    def raise_in_thread(work):
        raise error

    if not is_async:
        one.executor._handlers.clear()
        one.executor.handler("task", retries=1)(raise_in_thread)

    @one.executor.handler("bystander")
    async def wait(work):
        await trio.sleep(0.1)

    await one.enqueue("a")
    await one.enqueue("b", name="bystander")
    planton = one.planton()
    planton.register(one.storage.queue_task("bystander", delay=0.02))
    async with planton:
        await one.seen.until(3)
    found = await one.record()

    assert ("dead", 2) == (found.status, found.delivery)
    assert text in found.error
    assert len(found.error) <= 10_000
    assert "succeeded" == (await one.record("b", "bystander")).status


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


class RudeDict(dict):
    def items(self):
        raise SystemExit("not now")


RESULTS = {
    "surrogates in a name": ({"file": NAME}, "succeeded"),
    "NUL": ({"a": "\0"}, "failed"),
    "deep": (nested(5_000), "failed"),
    "too long": ("x" * (17 * 1024 * 1024), "failed"),
    "not a number": (float("nan"), "failed"),
    "a set": ({1}, "failed"),
    "a class that raises": (RudeDict(a=1), "failed"),
    "many digits": (10**5000, "failed"),
}


@pytest.mark.parametrize("name", RESULTS)
async def test_a_result_that_cannot_be_stored_is_found_out_before(bench, name):
    """The work ends, with the reason, and is not repeated."""
    one = bench()
    result, status = RESULTS[name]
    calls = []

    @one.executor.handler("task", retries=3)
    async def handle(work):
        calls.append(work.delivery)
        return result

    await one.enqueue("a")
    async with one.planton():
        await one.seen.until(1)
    found = await one.record()

    assert [1] == calls
    assert status == found.status
    if status == "failed":
        assert "is done, but its result cannot be stored" in found.error
        assert ["result"] == [event.reason for event in one.seen.failed]


async def test_a_group_gives_up_if_one_of_its_causes_does(bench):
    """As a nursery raises it."""
    one = bench()

    @one.executor.handler("task", retries=3)
    async def handle(work):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 10)
            raise GiveUp("no such address")

    @one.executor.handler("other", retries=3)
    async def handle_other(work):
        raise ExceptionGroup("two", [OSError("slow"), GiveUp("no such address")])

    await one.enqueue("a")
    await one.enqueue("b", name="other")
    planton = one.planton()
    planton.register(one.storage.queue_task("other", delay=0.02))
    async with planton:
        await one.seen.until(2)
    found, other = await one.record(), await one.record("b", "other")

    assert ("failed", "no such address") == (found.status, found.error)
    assert "failed" == other.status
    assert "OSError: slow; GiveUp: no such address" in other.error
    assert [None, None] == [event.retry_in for event in one.seen.failed]


@pytest.mark.parametrize("kind", ("memory",))
async def test_the_stored_error_of_a_group_names_its_causes(bench):
    """All of them, whatever groups they are in."""
    one = bench()

    @one.executor.handler("task")
    async def handle(work):
        inner = ExceptionGroup("inner", [ConnectionError("smtp refused"), ApiError(5)])
        raise BaseExceptionGroup("outer", [ValueError("b"), inner, SystemExit(1)])

    await one.enqueue("a")
    async with one.planton():
        await one.seen.until(1)
    found = await one.record()

    assert "ValueError: b; ConnectionError: smtp refused; ApiError" in found.error
    assert "SystemExit: 1" in found.error


async def test_a_listener_may_raise_whatever_it_likes(memory_bench, caplog):
    """Of a start, a success, a failure; sync or async."""
    one = memory_bench()

    def exit_now(event):
        raise SystemExit(1)

    async def exit_later(event):
        raise asyncio.CancelledError

    def fail_deeply(event):
        raise deep_group()

    for event_type in (StartedEvent, SucceededEvent, FailedEvent):
        one.executor.on(event_type, exit_now)
        one.executor.on(event_type, exit_later)
        one.executor.on(event_type, fail_deeply)

    @one.executor.handler("task")
    async def handle(work):
        if work.instruction == "b":
            raise ValueError("b")

    await one.enqueue("a", "b")
    async with one.planton():
        await trio.sleep(1)

    assert ["succeeded", "dead"] == [(await one.record(name)).status for name in "ab"]
    told = [each for each in caplog.records if each.message.startswith("listener")]
    assert 12 == len(told)  # two instructions begin and end, and three listeners hear of each


async def test_a_retry_delay_may_exit(memory_bench):
    """The try counts, and the next one is due at once."""
    one = memory_bench()

    def leave(number):
        raise SystemExit(2)

    @one.executor.handler("task", retries=1, retry_delay=leave)
    async def handle(work):
        raise ValueError("broken")

    await one.enqueue("a")
    async with one.planton():
        await one.seen.until(2)

    found = await one.record()

    assert "ValueError: broken (and its retry_delay raised PlantonError: SystemExit: 2" in (
        found.error
    )


async def test_an_error_that_says_nothing_has_its_type_in_the_log(memory_bench, caplog):
    """`str(error)` may be empty."""
    one = memory_bench()

    @one.executor.handler("task")
    async def handle(work):
        raise TimeoutError

    one.executor.off(FailedEvent, one.seen.fail)
    await one.enqueue("a")
    async with one.planton():
        await trio.sleep(1)

    assert "failed (error): TimeoutError" in caplog.text
