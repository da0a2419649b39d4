"""Each test runs on asyncio and on uvloop, with the pump and without."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
import uvloop

from planton.asyncio import _pump

RUNNERS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=["pump", "batched"])
def way(request, monkeypatch) -> str:
    """How trio waits; without what the pump needs of trio it is its own thread."""
    if request.param == "batched":
        monkeypatch.setattr(_pump, "POLLERS", ())
    return request.param


@pytest.fixture(params=LOOPS)
def kind(request) -> str:
    """Which loop."""
    return request.param


@pytest.fixture
def new_loop(kind) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make a loop, for a test that handles it by itself."""
    return LOOPS[kind]


@pytest.fixture
def run(kind, way) -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Run a coroutine function in a program of its own; trio must be gone in the end."""

    def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(20):
                return await main()

        try:
            return RUNNERS[kind](limited())
        finally:
            assert not trio.lowlevel.in_trio_run()
            assert sys.get_asyncgen_hooks() == (None, None)

    return run
