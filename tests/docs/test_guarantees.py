"""Every promise on the page of guarantees names tests that exist."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
PROOFS = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", PAGE.read_text())


@pytest.mark.parametrize(("test", "path"), PROOFS)
def test_a_proof_exists(test, path, linked):
    """The test is defined in the file that the link leads to."""
    assert re.search(rf"def {test}\(", linked(PAGE, path).read_text())


def test_every_line_of_a_table_names_a_proof():
    """A promise without a test is none."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    promises = [line for line in lines if not line.startswith(("| what", "| ---"))]

    assert promises
    assert [] == [line for line in promises if "[`test_" not in line]
