"""A fleet in one process, in virtual time, from one seed, with whatever can go wrong."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio
import trio.testing
from trio._core import _run

from planton._errors import InvalidArgumentError
from planton._planton import Planton
from planton.storage import Storage
from planton.testing._memory import memory_storage
from planton.testing.simulation._node import Node
from planton.testing.simulation._world import FAULTS, World

FAULTY_TIME = 60.0  # seconds until nothing goes wrong any more
RECOVERY_TIME = 3600.0  # until all that was open then has ended
IDLE_TIME = 300.0  # until all delays are long
# Until what is enqueued then has ended: less than a delay, so by wake-ups and at its own time.
PROBE_TIME = 25.0
_ALSO = "(with a storage or dispatchers of your own: simulate() with the same arguments)"


@attrs.frozen
class SimulationReport:
    """What happened in a simulation in which all went as promised.

    Attributes:
        seed: What it was made from.
        trace: What happened, a line each: seconds, who, what. The same for the same seed.
        counts: How often what happened: faults by their names, and `"claims"`, `"deliveries"`,
            `"ends"`, and `"stale"` for late reports that were refused.
        duration: Virtual seconds.
    """

    seed: int
    trace: tuple[str, ...]
    counts: dict[str, int]
    duration: float


class SimulationError(AssertionError):
    """A promise was broken in a simulation.

    Attributes:
        seed: Plays it again, exactly.
        violation: The promise.
        trace: What happened before, a line each.
    """

    def __init__(self, seed: int, violation: str, trace: Collection[str]) -> None:
        self.seed = seed
        self.violation = violation
        self.trace = tuple(trace)
        command = f"python -m planton.testing simulate --seed {seed} --trace"
        lines = [f"seed {seed}: {violation}", *self.trace[-20:], f"To replay it: {command}", _ALSO]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Let it come back from the process that ran the simulation."""
        return type(self), (self.seed, self.violation, self.trace)


def simulate(
    seed: int,
    *,
    faults: Collection[str] = tuple(FAULTS),
    storage: Callable[..., Storage] | None = None,
    planton: Callable[..., Planton] = Planton,
) -> SimulationReport:
    """Run a fleet of dispatchers and consumers in virtual time, and see that it keeps its word.

    For a minute callbacks raise and hang, answers are lost after the commit, nodes die,
    wake-ups are lost, clocks run at other speeds, the storage refuses or is slow, listeners
    raise and dawdle, consumers die and are late. Then nothing goes wrong any more, and all must
    come right. At every commit: no task has more active than its concurrency; no instruction is
    claimed while somebody has a lease of it, or after its end; no late write is applied; no
    claim is delivered twice. In the end: every instruction has ended, wake-ups reach their
    tasks, and each node terminates within its grace.

    It has its own `trio.run`, so it is not called from one. The same seed gives the same trace
    in every process, on the same versions of Python, trio and Planton.

    Args:
        seed: What to make it from.
        faults: Which ones may strike; all by default.
        storage: Makes the storage, from `latency` and `start`: `MemoryStorage`, which None stands
            for, or a subclass.
        planton: Makes the dispatchers, from the arguments of `Planton`.

    Raises:
        SimulationError: If a promise is broken.
        InvalidArgumentError: If the seed is no int of at least 0, or a fault is not known.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidArgumentError("seed", seed, "give an int of at least 0")
    for fault in faults:
        if fault not in FAULTS:
            raise InvalidArgumentError("faults", fault, f"give some of {', '.join(FAULTS)}")
    clock = trio.testing.MockClock(autojump_threshold=0)
    fleet = Fleet(seed, frozenset(faults), storage or memory_storage(), planton)
    try:
        with _one_order(seed):
            trio.run(fleet.run, clock=clock)
    except Exception as error:
        raise SimulationError(seed, f"something raised {error!r}", fleet.trace) from error
    if fleet.violation is not None:
        raise SimulationError(seed, fleet.violation, fleet.trace)
    counts = dict(sorted(fleet.ledger.counts.items()))
    return SimulationReport(seed, tuple(fleet.trace), counts, clock.current_time())


class Fleet(World):
    """The world with the nodes that live in it, and what becomes of them."""

    def __init__(self, *of_the_world: Any) -> None:
        super().__init__(*of_the_world)
        self.nodes = [Node(self, f"node{n}") for n in range(self.rng.randint(1, 3))]

    async def run(self) -> None:
        """Let things go wrong for a while, then see whether all comes right."""
        with self.scope:
            async with trio.open_nursery() as self.nursery:
                for node in self.nodes:
                    self.nursery.start_soon(node.run)
                await self._go_wrong()
                await self._come_right()
                for node in self.nodes:
                    node.close()

    async def _go_wrong(self) -> None:
        with trio.move_on_after(FAULTY_TIME):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.break_storage)
                for number in range(self.rng.randint(5, 15)):
                    nursery.start_soon(self.produce, number, self.rng.uniform(0, FAULTY_TIME / 2))
                await trio.sleep_forever()
        self.is_faulty = False
        self.mend_storage()
        self.log("world", "faults stop")

    async def _come_right(self) -> None:
        await self._settle(RECOVERY_TIME, "no progress once faults had stopped")
        self.log("world", "all has ended")
        self.is_probing = True
        await trio.sleep(IDLE_TIME)
        for number in range(100, 100 + self.rng.randint(1, 6)):
            await trio.sleep(self.rng.uniform(0, 1))
            for node in self.nodes:
                node.planton.wake()
            # While those attempts are in hand: some have looked already when this is committed.
            await self.produce(number, self.rng.uniform(0, self.latency))
        problem = "a wake-up was lost or a time was missed although nothing went wrong"
        await self._settle(PROBE_TIME, problem)
        self.is_closing = True

    async def _settle(self, seconds: float, problem: str) -> None:
        with trio.move_on_after(seconds):
            await self.ledger.settled.wait()
            return
        names = sorted(" ".join(key) for key in self.ledger.open)
        self.fail(f"{problem}: {', '.join(names)} not ended after {seconds:g} s")
        await trio.lowlevel.checkpoint()


@contextmanager
def _one_order(seed: int) -> Iterator[None]:
    """Let trio run its tasks in an order that the seed decides.

    Of the tasks that can go on trio takes a random one first. It has no public way to repeat
    that; these two names are how pytest-trio makes it repeatable for Hypothesis: put the tasks
    in the order of their birth, then shuffle with a generator of trio's own.
    """
    known = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = known[0]  # type: ignore[misc]
        _run._r.setstate(known[1])
