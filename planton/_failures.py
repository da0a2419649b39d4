"""What the users' functions raise: which of it is their failure, and which of it is ours."""

import math

import trio

from planton._errors import PlantonError
from planton._text import describe, leaves


def unwrapped(error: BaseException) -> BaseException:
    """Return the one exception that groups of one are wrapped around."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def failure_of(raised: BaseException) -> Exception:
    """Return what a user's function raised as the error that it failed with.

    Only a KeyboardInterrupt and our own cancellation end more than the call: they are raised
    again. SystemExit, asyncio's CancelledError, or a Cancelled of another trio run do not.
    """
    if ours := [each for each in leaves(raised) if _is_ours(each)]:
        raise ours[0] if len(ours) == 1 else BaseExceptionGroup("broken off", ours)
    error = unwrapped(raised)
    if isinstance(error, Exception):
        return error
    wrapped = PlantonError(f"{describe(error)} was raised, and failed nothing but this call")
    wrapped.__cause__ = error
    return wrapped


class _Guarded:
    """The code of users in its block raises nothing but what `failure_of` lets through."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, raised: BaseException | None, __: object) -> None:
        if raised is not None:
            failure = failure_of(raised)
            if failure is not raised:
                raise failure


guarded = _Guarded()


def _is_ours(raised: BaseException) -> bool:
    if isinstance(raised, trio.Cancelled):
        return trio.current_effective_deadline() == -math.inf
    return isinstance(raised, KeyboardInterrupt)
