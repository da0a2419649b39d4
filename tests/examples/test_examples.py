"""Every example prints what its header says."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_prints_what_its_header_says(example, tmp_path):
    """The header also says how to install and how to run it."""
    header = ast.get_docstring(ast.parse(example.read_text())) or ""
    promise = textwrap.dedent(header.partition("Prints:\n")[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "To install:" in header
    assert f"To run: python examples/{example.name}" in header
    assert (promise, "", 0) == (done.stdout.strip("\n"), done.stderr, done.returncode)
