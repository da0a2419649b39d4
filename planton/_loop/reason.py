"""Why an attempt ended as it did, in words that are made only when somebody asks."""

from typing import NamedTuple

# A wait longer than this is for good.
_NEVER = 100 * 366 * 86400.0


class Reason(NamedTuple):
    """Why an attempt ended as it did, without holding on to what it worked with."""

    outcome: str
    handed_over: int
    limit: int | None
    active: int | None
    concurrency: int | None
    attempt_number: int
    detail: str
    delay: float | None
    is_cut: bool

    def __str__(self) -> str:
        parts = [self.verdict()]
        if self.outcome != "dispatched":
            parts.append(f"attempt {self.attempt_number}")
        if self.delay is not None:
            parts.append(f"next {in_words(self.delay)}")
        if self.is_cut:
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
