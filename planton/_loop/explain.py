"""Attempts in words; the words are made only when somebody asks."""

from typing import NamedTuple

from planton._loop.attempt import Attempt

# Of the text of an error, such as a database's with a whole statement in it.
_LONGEST = 200


class Reason(NamedTuple):
    """Why an attempt ended as it did, without holding on to what it worked with."""

    outcome: str
    handed_over: int
    limit: int | None
    active: int | None
    concurrency: int | None
    attempt_number: int
    why: str
    delay: float | None
    is_cut: bool

    def __str__(self) -> str:
        parts = [self._outcome()]
        if self.outcome != "dispatched":
            parts.append(f"attempt {self.attempt_number}")
        if self.delay is not None:
            parts.append(f"next in {in_words(self.delay)}")
        if self.is_cut:
            parts.append("when something may be due")
        return ", ".join(parts)

    def _outcome(self) -> str:
        if self.outcome == "dispatched":
            return f"dispatched {self.handed_over} of at most {self.limit}{self._counted()}"
        if self.outcome == "saturated":
            return f"saturated: {self.active} of {self.concurrency} active"
        if self.outcome == "nothing":
            return f"nothing due{self._counted()}"
        return f"{self.outcome}: {self.why}{self._counted()}"

    def _counted(self) -> str:
        return f", {self.active} of {self.concurrency} active before" if self.active else ""


def in_words(seconds: float) -> str:
    """Give seconds as exactly as people want them.

    Examples:
        >>> [in_words(seconds) for seconds in (0.00002, 0.16257, 4.0, 59.96, 3600.2)]
        ['0 s', '0.16 s', '4 s', '60 s', '3600 s']
    """
    return f"{round(seconds, 3):.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"


def on_one_line(text: str) -> str:
    r"""Fold a text of several lines, and shorten it.

    Examples:
        >>> on_one_line("near FORM:\n  SELECT 1\n  FORM table")
        'near FORM: SELECT 1 FORM table'
        >>> len(on_one_line("word " * 1000))
        200
    """
    folded = " ".join(text.split())
    return folded if len(folded) <= _LONGEST else folded[: _LONGEST - 1] + "…"


def reason(attempt: Attempt, delay: float | None) -> Reason:
    """Say how an attempt ended and when the next one is due."""
    why = attempt.why
    if attempt.outcome == "error":
        stage, error = attempt.errors[0]
        why = f"{stage}: {type(error).__name__}: {on_one_line(str(error))}"
    elif attempt.outcome == "stopping":
        why = "nothing more is claimed"
    entry = attempt.entry
    counts = (attempt.handed_over, attempt.limit, attempt.active, entry.concurrency)
    is_cut = delay is not None and delay == attempt.due_in
    return Reason._make((attempt.outcome, *counts, entry.attempt_number, why, delay, is_cut))
