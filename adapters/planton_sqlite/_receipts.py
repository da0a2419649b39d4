"""Receipts: stored as random numbers, shown as text that hardly any instruction looks like."""

import re
from collections.abc import Sequence

from planton import InvalidArgumentError
from planton.storage import to_receipts

_FORM = re.compile("r[0-9a-f]{16}")


def to_receipt(number: int) -> str:
    """Give the receipt of a claim by the 64 bits that it is stored as.

    Examples:
        >>> to_receipt(-2)
        'rfffffffffffffffe'
    """
    return f"r{number & (2**64 - 1):016x}"


def to_numbers(receipts: str | Sequence[str]) -> dict[str, int]:
    """Give receipts with the numbers that they are stored as.

    Raises:
        InvalidArgumentError: If one is none that this storage gives.
    """
    return {receipt: _to_number(receipt) for receipt in to_receipts(receipts)}


def _to_number(receipt: str) -> int:
    if _FORM.fullmatch(receipt) is None:
        remedy = "give the receipt of an event, as it was received"
        raise InvalidArgumentError("receipt", receipt, remedy)
    number = int(receipt[1:], 16)
    return number - 2**64 if number >= 2**63 else number
