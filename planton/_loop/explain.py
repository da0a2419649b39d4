"""Attempts in words."""

from planton._loop.attempt import Attempt
from planton._loop.reason import Reason
from planton._text import describe, on_one_line


def reason(attempt: Attempt, delay: float | None) -> Reason:
    """Return how an attempt ended and when the next one is due."""
    detail = attempt.detail
    if attempt.outcome == "error":
        stage, error = attempt.errors[0]
        detail = f"{stage}: {on_one_line(describe(error))}"
    elif attempt.outcome == "stopping":
        detail = "nothing more is claimed"
    counts = (attempt.handed_over, attempt.limit, attempt.active, attempt.concurrency)
    number, is_cut = attempt.entry.attempt_number, delay is not None and delay == attempt.due_in
    return Reason._make((attempt.outcome, *counts, number, detail, delay, is_cut))
