"""On what terms work is tried."""

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from planton.storage import to_count, to_number

RetryDelay: TypeAlias = float | Callable[[int], float]


def _to_timeout(value: Any) -> float | None:
    return None if value is None else to_number("timeout", value, above=0)


def _to_retries(value: Any) -> int:
    return to_count("retries", value)


def _to_retry_delay(value: Any) -> RetryDelay:
    return value if callable(value) else to_number("retry_delay", value)


@attrs.frozen(kw_only=True)
class Terms:
    """On what terms work is tried.

    Attributes:
        timeout: Seconds that one try may take; None for no limit.
        retries: Given to an instruction that has none of its own when it fails first.
        retry_delay: Seconds until the next try, or a function of how many came before.
        lower_priority: Whether a next try has a priority one lower.

    Raises:
        InvalidArgumentError: If one cannot be used.
    """

    timeout: float | None = attrs.field(default=None, converter=_to_timeout)
    retries: int = attrs.field(default=0, converter=_to_retries)
    retry_delay: RetryDelay = attrs.field(default=0.0, converter=_to_retry_delay)
    lower_priority: bool = attrs.field(default=False, converter=bool)

    def retry_in(self, tries: int) -> float:
        """Return the seconds until the next try, after so many."""
        if not callable(self.retry_delay):
            return self.retry_delay
        return to_number("retry_delay", self.retry_delay(tries - 1))
