"""What really happened in a simulation, told by those who see every commit; and what may not."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import trio

from planton._task import Claim

Key: TypeAlias = tuple[str, str]


@attrs.define
class Held:
    """A claim that has not ended.

    Attributes:
        receipt: Its name.
        until: When it expires at the earliest.
    """

    receipt: str | None
    until: float


@attrs.define(eq=False)
class Ledger:
    """Keeps books, and complains.

    It trusts no table of the storage: it counts what was claimed and what was acknowledged.

    Attributes:
        fail: Ends the simulation, with the invariant that is broken.
        concurrency: By task.
        leases: Seconds, by task.
        retries: How often an instruction may fail before that ends it.
        open: Instructions that have not ended.
        held: Those that are claimed.
        delivered: Receipts that consumers have.
        counts: How often what happened.
        settled: Set when no instruction is open.
    """

    fail: Callable[[str], None]
    concurrency: dict[str, int]
    leases: dict[str, float]
    retries: dict[Key, int] = attrs.field(factory=dict)
    open: set[Key] = attrs.field(factory=set)
    held: dict[Key, Held] = attrs.field(factory=dict)
    delivered: set[str | None] = attrs.field(factory=set)
    counts: Counter[str] = attrs.field(factory=Counter)
    settled: trio.Event = attrs.field(factory=trio.Event)

    def enqueued(self, key: Key, retries: int) -> None:
        """An instruction is to be done."""
        self.open.add(key)
        self.retries[key] = retries
        self.settled = trio.Event()

    def claimed(self, task_name: str, claims: Sequence[Claim], asked: float) -> None:
        """A claim that was asked for at `asked` is committed, whoever hears of it."""
        now = trio.current_time()
        for claim in claims:
            key, name = (task_name, claim.instruction), f"{task_name} {claim.instruction}"
            before = self.held.get(key)
            if key not in self.open:
                self.fail(f"claimed after its end: {name}")
            if before is not None and now < before.until:
                self.fail(f"claimed twice: {name} has a lease of {before.until - now:.3f} s more")
            self.held[key] = Held(claim.receipt, asked + self.leases[task_name])
            self.counts["claims"] += 1
        active = sum(name == task_name for name, _ in self.held)
        if active > self.concurrency[task_name]:
            most = self.concurrency[task_name]
            self.fail(f"cap exceeded: {active} active of {task_name}, concurrency {most}")

    def handed_over(self, key: Key, receipt: str | None) -> None:
        """A consumer has it."""
        if receipt in self.delivered:
            self.fail(f"delivered twice: one claim of {' '.join(key)}")
        self.delivered.add(receipt)
        self.counts["deliveries"] += 1

    def renewed(self, key: Key, receipt: str | None, asked: float) -> None:
        """A heartbeat was acknowledged."""
        if self._is_current(key, receipt, "heartbeat"):
            self.held[key].until = asked + self.leases[key[0]]

    def given_back(self, key: Key, receipt: str | None) -> None:
        """A release was acknowledged."""
        if self._is_current(key, receipt, "release"):
            del self.held[key]

    def failed(self, key: Key, receipt: str | None) -> None:
        """A failure was acknowledged: it ends what has no retries left."""
        if self.retries[key]:
            self.retries[key] -= 1
            self.given_back(key, receipt)
        else:
            self.ended(key, receipt)

    def ended(self, key: Key, receipt: str | None) -> None:
        """An end was acknowledged."""
        if self._is_current(key, receipt, "end"):
            del self.held[key]
            self.open.discard(key)
            self.counts["ends"] += 1
        if not self.open:
            self.settled.set()

    def _is_current(self, key: Key, receipt: str | None, what: str) -> bool:
        held = self.held.get(key)
        if held is not None and held.receipt == receipt:
            return True
        self.fail(f"late write applied: {what} of {' '.join(key)}, which was given to another")
        return False
