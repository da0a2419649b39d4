"""Exceptions of functions that users wrote: which are failures, and how they are told."""

import math
from collections.abc import Iterator

import trio

from planton.storage import to_error_text
from planton_executor._errors import GiveUp

# So many causes of an exception group are stored.
_CAUSES = 10


def is_ours(error: BaseException) -> bool:
    """Return whether an exception is no failure of a function, but ends the program or its scope.

    That is Ctrl-C, and a cancellation of a scope around the function. Anything else that a function
    raises is its failure: also SystemExit, and a `Cancelled` that belongs to nobody.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_ours(inner) for inner in error.exceptions)
    if isinstance(error, trio.Cancelled):
        return trio.current_effective_deadline() == -math.inf
    is_closing = isinstance(error, GeneratorExit) and not trio.lowlevel.in_trio_task()
    return is_closing or isinstance(error, KeyboardInterrupt)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Return what is in an exception group, or the exception if it is none."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting += reversed(each.exceptions)
        else:
            yield each


def gives_up(error: BaseException) -> bool:
    """Return whether a `GiveUp` was raised, perhaps within a nursery."""
    return any(isinstance(each, GiveUp) for each in causes(error))


def to_text(error: BaseException) -> str:
    """Return a failure as it is stored: of a group its causes."""
    texts = [_to_text(each) for each in causes(error)]
    if len(texts) > _CAUSES:
        texts[_CAUSES:] = [f"and {len(texts) - _CAUSES} more"]
    return to_error_text("; ".join(texts))


def _to_text(error: BaseException) -> str:
    text = to_error_text(error)
    prefix = f"{type(error).__name__}: "
    return text.removeprefix(prefix) if isinstance(error, GiveUp) else text
