"""A fleet in one process, in virtual time, from one seed, with whatever can go wrong."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

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
    world = World(seed, frozenset(faults), storage or memory_storage(), planton)
    world.nodes += [Node(world, name) for name in world.node_names]
    try:
        with _one_order(seed):
            trio.run(world.run, clock=clock)
    except Exception as error:
        raise SimulationError(seed, f"something raised {error!r}", world.trace) from error
    if world.violation is not None:
        raise SimulationError(seed, world.violation, world.trace)
    counts = dict(sorted(world.ledger.counts.items()))
    return SimulationReport(seed, tuple(world.trace), counts, clock.current_time())


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
