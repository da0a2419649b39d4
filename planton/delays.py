"""How long to wait before an attempt: values for `Task.delay`.

Each function here makes a delay: a callable that takes the attempt number and returns seconds.
The attempt number counts the attempts in a row that dispatched nothing; it is 0 at the start and
after each attempt that dispatched. Delays keep no state: tasks may share one.
"""

import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, time, tzinfo
from typing import Literal, TypeAlias, get_args

import attrs

from planton._calendar import Cron, Daily, Fold, Gap, NextWall, next_instant, to_instant, to_zone
from planton._errors import InvalidArgumentError

__all__ = ["CalendarDelay", "at", "constant", "cron", "exponential", "linear"]

Jitter: TypeAlias = Literal["full", "equal"]
Now: TypeAlias = Callable[[], datetime]
# From here on nearly every zone repeats its last rules for ever: what does not come now never will.
_PROBE = datetime(2040, 1, 1, tzinfo=UTC)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def constant(seconds: float) -> Callable[[int], float]:
    """Wait the same time before every attempt.

    Args:
        seconds: Finite seconds of at least 0.

    Raises:
        InvalidArgumentError: If `seconds` is no such number.

    Examples:
        >>> delay = constant(5)
        >>> [delay(attempt_number) for attempt_number in range(3)]
        [5.0, 5.0, 5.0]
    """
    wait = _number("seconds", seconds)
    return Backoff(f"constant({wait:g})", lambda _: wait)


def linear(initial: float, step: float, maximum: float) -> Callable[[int], float]:
    """Wait longer by the same step after each attempt that dispatched nothing.

    Args:
        initial: Seconds to wait when the last attempt dispatched.
        step: Seconds by which the wait grows.
        maximum: Most seconds to wait; at least `initial`.

    Raises:
        InvalidArgumentError: If one is not finite seconds of at least 0, or `maximum` is less
            than `initial`.

    Examples:
        >>> delay = linear(initial=0, step=1, maximum=60)
        >>> [delay(attempt_number) for attempt_number in (0, 1, 2, 59, 60, 61)]
        [0.0, 1.0, 2.0, 59.0, 60.0, 60.0]
    """
    initial, step = _number("initial", initial), _number("step", step)
    most = _maximum(maximum, initial)
    text = f"linear({initial:g}, {step:g}, {most:g})"
    return Backoff(text, lambda number: min(most, initial + step * number))


def exponential(
    initial: float,
    maximum: float,
    factor: float = 2,
    jitter: Jitter | None = "full",
    *,
    random: Callable[[], float] = random.random,
) -> Callable[[int], float]:
    """Wait a multiple longer after each attempt that dispatched nothing, with randomness.

    After n such attempts the *ceiling* is `initial * factor**n`, at most `maximum`. Without
    jitter the ceiling is the wait, and dispatchers that failed together try again together.
    Jitter spreads them: `"full"` waits anything from 0 to the ceiling, `"equal"` from half of it
    to all of it. See "Exponential Backoff And Jitter" by Marc Brooker, AWS Architecture Blog,
    2015: full jitter made the fewest calls there, and a wait close to 0 is part of how it works.

    Args:
        initial: Seconds of the first ceiling; above 0.
        maximum: Most seconds to wait; at least `initial`.
        factor: By which the ceiling grows; at least 1.
        jitter: `"full"`, `"equal"` or None.
        random: Returns a float from 0 to below 1; for tests.

    Raises:
        InvalidArgumentError: If an argument is not as described.

    Examples:
        >>> delay = exponential(initial=0.1, maximum=60, jitter=None)
        >>> [delay(attempt_number) for attempt_number in (0, 1, 2, 9, 10, 1_000_000)]
        [0.1, 0.2, 0.4, 51.2, 60.0, 60.0]

        >>> exponential(initial=0.1, maximum=60, jitter="equal", random=lambda: 0.5)(10)
        45.0
    """
    if _number("initial", initial) == 0:
        raise InvalidArgumentError("initial", initial, "give seconds above 0; 0 never grows")
    if jitter is not None:
        _check_choice("jitter", jitter, get_args(Jitter))
    maximum, factor = _maximum(maximum, initial), _number("factor", factor, minimum=1)
    fixed = {None: 1.0, "equal": 0.5, "full": 0.0}[jitter]

    def wait(attempt_number: int) -> float:
        try:
            ceiling = min(maximum, initial * factor**attempt_number)
        except OverflowError:  # the power of a float raises, beyond 1e308
            ceiling = maximum
        return ceiling * (fixed + (1 - fixed) * random())

    return Backoff(f"exponential({initial:g}, {maximum:g}, {factor:g}, {jitter!r})", wait)


def cron(
    expression: str,
    timezone: str | tzinfo = "UTC",
    fold: Literal["auto", "first", "second", "both"] = "auto",
    gap: Gap = "forward",
    now: Now = _utc_now,
) -> "CalendarDelay":
    """Wait until the next time that a cron expression names; needs `pip install 'planton[cron]'`.

    The wait is above 0, whatever the attempt number. It is slept by a clock that knows nothing of
    corrections to the time of day, so an attempt may come a little early and a second one on time.

    Args:
        expression: Five fields (minute, hour, day of month, month, day of week), or six with
            seconds first. Knows ranges, steps, names, `L`, `LW` and `MON#1`. Either day field
            must match; both must when one of them starts with `*`.
        timezone: In which the expression is read: an IANA name, or any tzinfo.
        fold: Which of two equal local times counts when the clock is set back: `"first"`,
            `"second"` or `"both"`; `"auto"` is `"both"` when the hour field starts with `*`, so
            that a periodic task goes on in real time, and else `"first"`, so that others run once.
        gap: What a local time becomes that the clock skips when it is set forward: `"forward"`
            counts with the UTC offset before the gap (RFC 5545: 02:30 becomes 03:30), `"skip"`
            leaves it out.
        now: Returns the time, an aware datetime; for tests.

    Raises:
        InvalidArgumentError: If an argument is not as described, or the time never comes.
        ImportError: If cronsim is not installed.

    Examples:
        >>> from datetime import UTC, datetime
        >>> noon = datetime(2026, 3, 28, 12, tzinfo=UTC)
        >>> cron("*/5 * * * *", now=lambda: noon)(0)
        300.0

        The clock goes from 01:00 to 02:00 on 29 March, so that day has no 01:30:

        >>> cron("30 1 * * *", timezone="Europe/Lisbon").next_after(noon).isoformat()
        '2026-03-29T01:30:00+00:00'
        >>> cron("30 1 * * *", timezone="Europe/Lisbon", gap="skip").next_after(noon).isoformat()
        '2026-03-30T00:30:00+00:00'
    """
    _check_choice("fold", fold, ("auto", *get_args(Fold)))
    times = Cron(expression)
    if fold == "auto":
        fold = "both" if times.is_periodic else "first"
    delay = CalendarDelay(times, timezone, fold, gap, now)
    if next_instant(times, delay.timezone, _PROBE, fold, gap) is None:
        raise InvalidArgumentError("expression", expression, "no such time ever comes")
    return delay


def at(
    time: time | str,
    timezone: str | tzinfo,
    fold: Fold = "first",
    gap: Gap = "forward",
    now: Now = _utc_now,
) -> "CalendarDelay":
    """Wait until a time of day, daily.

    See `cron` for its limits, and for the other arguments in full.

    Args:
        time: Such as `"03:00"` or `datetime.time(3)`, without tzinfo.
        timezone: In which it is read: an IANA name, or any tzinfo.
        fold: Which of two equal local times counts: `"first"`, `"second"` or `"both"`.
        gap: What a local time becomes that does not exist: `"forward"` or `"skip"`.
        now: Returns the time, an aware datetime; for tests.

    Raises:
        InvalidArgumentError: If an argument is not as described.

    Examples:
        >>> from datetime import UTC, datetime
        >>> delay = at("03:00", "America/New_York", now=lambda: datetime(2026, 7, 1, tzinfo=UTC))
        >>> delay(0) / 3600
        7.0
    """
    return CalendarDelay(Daily(time), timezone, fold, gap, now)


def _number(argument: str, value: object, minimum: float = 0) -> float:
    remedy = f"give a finite number of at least {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentError(argument, value, remedy)
    if not minimum <= value <= sys.float_info.max:  # false for NaN, too
        raise InvalidArgumentError(argument, value, remedy)
    return float(value)


def _maximum(value: object, initial: float) -> float:
    if _number("maximum", value) < initial:
        raise InvalidArgumentError("maximum", value, f"give at least initial, {initial:g}")
    return _number("maximum", value)


def _check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidArgumentError(argument, value, f"give one of {', '.join(choices)}")


class Pure:
    """Base of the delays that are made here: they return at once, and never an awaitable."""


@attrs.frozen
class Backoff(Pure):
    """Made by `constant`, `linear` and `exponential`; its text is how it was made."""

    text: str
    function: Callable[[int], float]

    def __call__(self, attempt_number: int) -> float:
        return self.function(attempt_number)

    def __repr__(self) -> str:
        return self.text


@attrs.frozen
class CalendarDelay(Pure):
    """Made by `cron` and `at`: a delay until the next of certain times.

    Attributes:
        times: Returns, for a naive local time, the next wanted one after it.
        timezone: In which those are read.
        fold: Which of two equal local times counts.
        gap: What becomes of a local time that does not exist.
        now: Returns the time.
    """

    times: NextWall
    timezone: tzinfo = attrs.field(converter=to_zone, repr=lambda zone: repr(str(zone)))
    fold: Fold
    gap: Gap
    now: Now = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        _check_choice("fold", self.fold, get_args(Fold))
        _check_choice("gap", self.gap, get_args(Gap))

    def __call__(self, attempt_number: int) -> float:  # noqa: ARG002  every delay gets it
        """Return the seconds from now until the next of the times; above 0."""
        now = to_instant("now", self.now())
        return (self.next_after(now) - now).total_seconds()

    def next_after(self, moment: datetime) -> datetime:
        """Return, in UTC, the first of the times after `moment`, never `moment` itself.

        Args:
            moment: An aware datetime.

        Raises:
            InvalidArgumentError: If `moment` is naive, or none of the times is within 50 years.
        """
        instant = to_instant("moment", moment)
        found = next_instant(self.times, self.timezone, instant, self.fold, self.gap)
        if found is None:
            raise InvalidArgumentError("moment", moment, "none of the times follows in 50 years")
        return found
