"""Which times of a time table fire now, and which is kept as the next; pure.

A next time is kept for each time table of a task. There are two of them while a new version of a
program is deployed that has another expression: then the times of both are dispatched, one that
they share once, and none goes missing because the other began anew.
"""

from datetime import UTC, datetime, timedelta

import attrs

from planton.abc import TimeTable
from planton_postgres._found import Found

# Of one whose next time was not dispatched for so long nobody is left that has it.
_GONE = timedelta(hours=1)
_LOOK_AGAIN = timedelta(seconds=1)


@attrs.frozen(kw_only=True)
class Fires:
    """What becomes of a time table.

    Attributes:
        due: The instructions to dispatch.
        next_at: The next time to keep; None to leave what is kept.
        shared: Keys of other time tables whose next time is dispatched with ours.
        gone: Keys of other time tables that nobody has any more.
        look_at: When it is worth looking again; None for after the usual delay.
    """

    due: list[str] = attrs.field(factory=list)
    next_at: datetime | None = None
    shared: list[str] = attrs.field(factory=list)
    gone: list[str] = attrs.field(factory=list)
    look_at: datetime | None = None


def fires_of(times: TimeTable, found: Found) -> Fires:
    """Tell what becomes of the time table of a task."""
    now = found.now
    if not found.is_held:
        # The usual case; or somebody else is there, and perhaps dispatches what is ours, too.
        kept = found.next_fire_at
        return Fires(look_at=kept if kept and kept > now else now + _LOOK_AGAIN)
    due, next_at = times.claimable(_first(times, found), now, found.room)
    others = [(key, fire.at) for key, fire in found.fires.items() if key != times.key]
    return Fires(
        due=[time.astimezone(UTC).isoformat() for time in due],
        next_at=next_at,
        shared=[key for key, at in others if at in due],
        gone=[key for key, at in others if at < now - _GONE],
        look_at=next_at,
    )


def _first(times: TimeTable, found: Found) -> datetime:
    """Give the first time that was not dispatched yet."""
    kept = found.fires.get(times.key)
    if kept is None:
        return _left_behind(times, found) or times.delay.next_after(found.now)
    return times.delay.next_after(kept.at) if kept.is_done else kept.at


def _left_behind(times: TimeTable, found: Found) -> datetime | None:
    """Give a time of ours for which an older version was stopped before it could dispatch it."""
    come = [fire.at for fire in found.fires.values() if fire.at <= found.now and not fire.is_done]
    ours = [at for at in come if times.delay.next_after(at - datetime.resolution) == at]
    return min(ours, default=None)
