"""Instructions to queue as one parameter, which every library can bind, and what came of it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import attrs

from planton.storage._backend import NewInstruction


def to_rows(new: Sequence[NewInstruction], to_time: Callable[[datetime], Any]) -> str:
    """Return instructions as a JSON array of objects, each with the columns of the queue."""
    rows = [attrs.asdict(each, recurse=False) for each in new]
    for row in rows:
        row["run_at"] = None if row["run_at"] is None else to_time(row["run_at"])
    return json.dumps(rows)


def are_new(new: Sequence[NewInstruction], added: Iterable[Sequence[Any]]) -> list[bool]:
    """Return whether each was queued, by the task and instruction of those that were.

    Of two equal ones of a call the first was.
    """
    left = Counter((task_name, instruction) for task_name, instruction in added)
    keys = [(each.task_name, each.instruction) for each in new]
    answers = []
    for key in keys:
        answers.append(left[key] > 0)
        left[key] -= 1
    return answers
