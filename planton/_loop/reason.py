"""Why an attempt ended as it did, in words that are made only when somebody asks."""

from planton._events import Outcome

# A wait longer than this is for good.
_NEVER = 100 * 366 * 86400.0


class Reason:
    """What has to be known of an attempt to say in words why it ended as it did.

    Attributes:
        outcome: How it ends, unless something changes that.
        handed_over: How many claims consumers have taken.
        limit: How many may be claimed.
        active: How many are active, undelivered claims not counted.
        concurrency: Most active instructions that are in force.
        detail: What to add to the outcome.
        in_a_row: Attempts in a row, this one included, that dispatched nothing.
        delay: Seconds until the next attempt; None if there is none.
        due_in: Seconds until something may be due, which cut the delay.
    """

    outcome: Outcome = "nothing"
    handed_over: int = 0
    limit: int | None = None
    active: int | None = None
    concurrency: int | None = None
    detail: str = ""
    in_a_row: int = 0
    delay: float | None = None
    due_in: float | None = None

    def __str__(self) -> str:
        parts = [self.verdict()]
        if self.outcome != "dispatched":
            parts.append(f"attempt {self.in_a_row}")
        if self.delay is not None:
            parts.append(f"next {in_words(self.delay)}")
        if self.delay is not None and self.delay == self.due_in:
            parts.append("when something may be due")
        return ", ".join(parts)

    def verdict(self) -> str:
        """Return the outcome in words, without when the next attempt is due."""
        if self.outcome == "dispatched":
            return f"dispatched {self.handed_over} of at most {self.limit}{self._counted()}"
        if self.outcome == "saturated":
            return f"saturated: {self.active} of {self.concurrency} active"
        if self.outcome == "nothing":
            return f"nothing due{self._counted()}"
        return f"{self.outcome}: {self.detail}{self._counted()}"

    def _counted(self) -> str:
        return f", {self.active} of {self.concurrency} active before" if self.active else ""


def times(number: int) -> str:
    """Return how often something happened in a row.

    Examples:
        >>> times(1), times(7)
        ('once', '7 times in a row')
    """
    return "once" if number == 1 else f"{number} times in a row"


def in_words(seconds: float) -> str:
    """Return a wait as exactly as people want to know it.

    Examples:
        >>> [in_words(seconds) for seconds in (0.00002, 0.16257, 4.0, 59.96, 3600.2)]
        ['in 0 s', 'in 0.16 s', 'in 4 s', 'in 60 s', 'in 3600 s']
        >>> in_words(1e18)
        'when it is woken'
    """
    if seconds > _NEVER:
        return "when it is woken"
    return f"in {round(seconds, 3):.2g} s" if seconds < 9.5 else f"in {seconds:.0f} s"
