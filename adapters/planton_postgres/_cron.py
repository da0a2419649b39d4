"""Which times of a time table fire now, and which is kept as the next; pure."""

from datetime import UTC, datetime, timedelta

import attrs

from planton.storage import CronTimes
from planton_postgres._found import Found

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


def fires_of(times: CronTimes, found: Found) -> Fires:
    """Tell what becomes of the time table of a task."""
    now = found.now
    if not found.is_held:
        # The usual case; or somebody else is there, and perhaps dispatches what is ours, too.
        kept = found.next_fire_at
        return Fires(look_at=kept if kept and kept > now else now + _LOOK_AGAIN)
    fires = times.fires(found.fires, found.now, found.room)
    return Fires(
        due=[time.astimezone(UTC).isoformat() for time in fires.due],
        next_at=fires.next_at,
        shared=fires.shared,
        gone=fires.gone,
        look_at=fires.next_at,
    )
