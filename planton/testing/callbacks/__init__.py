"""What the callbacks of a user guarantee, found out by playing dispatchers against them."""

from planton.testing.callbacks._check import check_callbacks
from planton.testing.callbacks._report import CallbackReport, Finding

__all__ = ["CallbackReport", "Finding", "check_callbacks"]
