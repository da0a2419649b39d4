"""The first line of `planton explain`: why a task does, or does not, dispatch in the fleet."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import attrs

from planton.cli._output import ago, since
from planton.cli._status import place
from planton.storage import DispatcherRecord, InstructionRecord, TaskReport, TaskStats

# Of more that run, or are queued, the first are looked at.
MOST = 1000
# How the words of a dispatcher begin that cannot claim what is due, and will not by itself.
_NOTHING = "nothing due"
_STUCK = (_NOTHING, "full", "limited")
# An attempt that was made so long after something became due would have found it.
_A_MOMENT = timedelta(seconds=1)


@attrs.frozen(kw_only=True)
class Situation:
    """What the storage and the fleet say about one task.

    Attributes:
        stats: How many instructions there are; None if the storage has none.
        running: What is active, `MOST` of it.
        queued: What is queued, `MOST` of it.
        told: What each dispatcher says, with the dispatcher.
        dispatchers: All that are known.
    """

    stats: TaskStats | None
    running: Sequence[InstructionRecord]
    queued: Sequence[InstructionRecord]
    told: Sequence[tuple[TaskReport, DispatcherRecord]]
    dispatchers: Sequence[DispatcherRecord]

    @property
    def living(self) -> list[TaskReport]:
        """What those say that are not lost."""
        return [report for report, dispatcher in self.told if dispatcher.state != "lost"]

    @property
    def concurrency(self) -> int | None:
        """The concurrency in force; the largest, if dispatchers differ."""
        if self.stats is not None and self.stats.concurrency is not None:
            return self.stats.concurrency
        said = [each.status.concurrency for each in self.living]
        return max((number for number in said if number is not None), default=None)


def verdict(found: Situation) -> str:
    """Return in one line where a task stands, and who or what is to blame."""
    return _of_dispatchers(found) or _saturated(found) or _unserved(found) or _of_the_queue(found)


def _of_dispatchers(found: Situation) -> str | None:
    living = found.living
    if not living:
        lost = [dispatcher for _, dispatcher in found.told]
        names = ", ".join(f"{place(each)} was lost {since(each.seen_at)} ago" for each in lost)
        return f"nobody dispatches it: {names or 'no dispatcher that runs has this task'}"
    if found.stats is not None and found.stats.paused:
        return "paused: nothing is claimed until `planton resume`"
    if all(each.status.state == "paused" for each in living):
        return "paused in each process that has it"
    if not any(each.status.consumed for each in living):
        return "nothing is claimed: no dispatcher has a handler or a listener for it"
    if all(each.status.consecutive_errors for each in living):
        return f"its attempts fail: {living[0].status.last_error}"
    return None


def _saturated(found: Situation) -> str | None:
    running, cap = found.stats.running if found.stats else 0, found.concurrency
    if cap is None or running < cap or not found.running:
        return None
    states = {place(each): each for each in found.dispatchers}
    holders = Counter(each.claimed_by or "?" for each in found.running)
    names = [_holder(name, count, states.get(name)) for name, count in holders.most_common(3)]
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    ends = min(each.lease_expires_at for each in found.running if each.lease_expires_at is not None)
    held = ", ".join(names) + more
    return f"saturated: {running} of {cap} active, held by {held}; the first lease ends {ago(ends)}"


def _holder(name: str, count: int, dispatcher: DispatcherRecord | None) -> str:
    if dispatcher is None or dispatcher.state != "lost":
        return f"{name} ({count})"
    return f"{name} ({count}, lost since {dispatcher.seen_at:%H:%M} UTC)"


def _unserved(found: Situation) -> str | None:
    """Return what nobody offers, if all that is due asks for it, or all that is queued."""
    offers = [each.tags for each in found.living]
    now = datetime.now(UTC)
    due = [each for each in found.queued if each.run_at is not None and each.run_at <= now]
    queued = due or found.queued
    if not queued or None in offers:
        return None  # a dispatcher has not said what it offers
    missing = [each.tags for each in queued if not _is_served(each.tags, offers)]
    if len(missing) < len(queued):
        return None
    offered = {tag for tags in offers for tag in tags or ()}
    names = sorted({tag for tags in missing for tag in tags} - offered)
    what = f"tags nobody offers: {', '.join(names)}" if names else "tags no dispatcher has together"
    least = "at least " if len(missing) == MOST else ""
    return f"{least}{len(missing)} queued ask for {what}"


def _is_served(tags: Sequence[str], offers: Sequence[Sequence[str] | None]) -> bool:
    return any(set(tags).issubset(offered or ()) for offered in offers)


def _of_the_queue(found: Situation) -> str:
    stats = found.stats
    if stats is None or not stats.queued:
        return "nothing is queued in the storage; what rows of your own are due, an attempt finds"
    if stats.oldest_due_at is not None:
        return (
            f"due for {since(stats.oldest_due_at)}, and {_why_it_waits(found, stats.oldest_due_at)}"
        )
    following = min((each.run_at for each in found.queued if each.run_at is not None), default=None)
    return f"nothing is due; the next is, {ago(following)}" if following else "nothing is due"


def _why_it_waits(found: Situation, due_at: datetime) -> str:
    """Return what the dispatchers say that have looked since; all of them must have."""
    looked = [each for each in found.living if _has_looked(each, due_at + _A_MOMENT)]
    said = {each.decisions[0].partition(";")[0] for each in looked}
    if len(looked) < len(found.living) or not all(each.startswith(_STUCK) for each in said):
        return "waits for the next attempt"
    if stuck := sorted(each for each in said if not each.startswith(_NOTHING)):
        return f"its dispatchers say: {', '.join(stuck)}"
    return "attempts do not find it: no dispatcher has its key, or a transaction locks its row"


def _has_looked(report: TaskReport, since_then: datetime) -> bool:
    last = report.status.last_attempt_at
    return last is not None and last > since_then
