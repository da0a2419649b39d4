"""How work ends: what is to be stored of a claim."""

from typing import Any, Literal, TypeAlias

import attrs

Kind: TypeAlias = Literal["complete", "fail", "advance", "postpone", "release"]
# A report as `Storage.report_many` takes it, without its receipts.
Report: TypeAlias = tuple[Kind, tuple[Any, ...]]


@attrs.frozen(eq=False)
class Complete:
    """The work is done; `text` is the result as JSON."""

    result: Any = None
    text: str | None = None

    @property
    def report(self) -> Report:
        return "complete", (self.text,)


@attrs.frozen(eq=False, kw_only=True)
class Fail:
    """The work failed.

    Attributes:
        error: What was raised, or what was wrong.
        text: The same as it is stored.
        retry_in: Seconds until the next try, if one is left; None if another would not help.
        retries: Granted if the instruction has none of its own.
        lower_priority: Whether a next try has a priority one lower.
    """

    error: BaseException
    text: str
    retry_in: float | None = None
    retries: int = 0
    lower_priority: bool = False

    @property
    def report(self) -> Report:
        delay, retry = self.retry_in or 0.0, self.retry_in is not None
        return "fail", (self.text, delay, retry, self.lower_priority, self.retries)


@attrs.frozen(eq=False)
class Advance:
    """The work has come to its next step.

    Attributes:
        state: Where it is now.
        text: The same as JSON.
        retries: Of that step.
        run_in: Seconds until it goes on; None if the claim is kept.
    """

    state: Any
    text: str
    retries: int
    run_in: float | None

    @property
    def report(self) -> Report:
        if self.run_in is None:
            return "advance", (self.text, self.retries)
        return "postpone", (self.text, self.retries, self.run_in)


@attrs.frozen(eq=False)
class Release:
    """The work was not begun, or was broken off."""

    report: Report = ("release", ())


End: TypeAlias = Complete | Fail | Advance | Release
