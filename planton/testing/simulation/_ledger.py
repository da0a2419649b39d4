"""What really happened in a simulation, commit by commit; and what may not."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import attrs
import trio

from planton.storage import Claimed, ClaimRequest, Receipt

Key: TypeAlias = tuple[str, str]
_ROUNDED = 1e-3  # dates are floats, too


@attrs.frozen
class TaskPlan:
    """A task that all nodes have."""

    name: str
    concurrency: int
    lease: float
    delay: float


@attrs.define
class Held:
    """A claim that has not ended."""

    receipt: str
    until: float  # when it expires at the earliest


@attrs.define(eq=False)
class Ledger:
    """Keeps books, and complains.

    It trusts no table of the storage: it counts what was claimed and what was acknowledged, in the
    order of the commits, whoever hears of them and when.
    """

    fail: Callable[[str], None]  # ends the simulation, with the invariant that is broken
    tasks: Mapping[str, TaskPlan]
    retries: dict[Key, int] = attrs.field(factory=dict)
    open: set[Key] = attrs.field(factory=set)
    held: dict[Key, Held] = attrs.field(factory=dict)
    delivered: set[str] = attrs.field(factory=set)
    intended: dict[str, tuple[str, Key]] = attrs.field(factory=dict)
    counts: Counter[str] = attrs.field(factory=Counter)
    settled: trio.Event = attrs.field(factory=trio.Event)

    def enqueued(self, key: Key, retries: int) -> None:
        self.open.add(key)
        self.retries[key] = retries
        self.settled = trio.Event()

    def commit(
        self,
        found: Sequence[Mapping[Receipt, str]],
        requests: Sequence[ClaimRequest],
        claimed: Sequence[Claimed],
    ) -> None:
        """Reports were applied, and claims made after them, whoever hears of it."""
        for one in found:
            for receipt in one:
                self.acknowledged(to_text(receipt))
        for request, each in zip(requests, claimed, strict=True):
            receipts = {row.instruction: to_text(row.receipt) for row in each.rows}
            self.claimed(request.rule.task_name, receipts)

    def claimed(self, task_name: str, receipts: Mapping[str, str]) -> None:
        now = trio.current_time()
        for instruction, receipt in receipts.items():
            key, name = (task_name, instruction), f"{task_name} {instruction}"
            before = self.held.get(key)
            if key not in self.open:
                self.fail(f"claimed after its end: {name}")
            if before is not None and now < before.until - _ROUNDED:
                self.fail(f"claimed twice: {name} has a lease of {before.until - now:.3f} s more")
            self.held[key] = Held(receipt, now + self.tasks[task_name].lease)
            self.counts["claims"] += 1
        active = sum(name == task_name for name, _ in self.held)
        most = self.tasks[task_name].concurrency
        if active > most:
            self.fail(f"cap exceeded: {active} active of {task_name}, concurrency {most}")

    def intend(self, kind: str, key: Key, receipt: str) -> None:
        """Something is about to be reported: it counts once it is committed."""
        self.intended[receipt] = kind, key

    def acknowledged(self, receipt: str) -> None:
        """What was reported by a receipt is committed; the first word of it counts."""
        if receipt in self.intended:
            self.apply(*self.intended.pop(receipt), receipt)

    def handed_over(self, key: Key, receipt: str) -> None:
        if receipt in self.delivered:
            self.fail(f"delivered twice: one claim of {' '.join(key)}")
        self.delivered.add(receipt)
        self.counts["deliveries"] += 1

    def apply(self, kind: str, key: Key, receipt: str) -> None:
        """A report is committed; a failure with retries left is a release."""
        held = self.held.get(key)
        if held is None or held.receipt != receipt:
            self.fail(f"late write applied: {kind} of {' '.join(key)}, which was given to another")
        elif kind == "heartbeat":
            held.until = trio.current_time() + self.tasks[key[0]].lease
        else:
            del self.held[key]
            if kind == "fail" and self.retries[key]:
                self.retries[key] -= 1
            elif kind != "release":
                self._end(key)

    def _end(self, key: Key) -> None:
        self.open.discard(key)
        self.counts["ends"] += 1
        if not self.open:
            self.settled.set()


def to_text(receipt: Receipt) -> str:
    return f"{receipt[0]}.{receipt[1]}"
