"""Every example prints what its header says."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def header(example):
    return ast.get_docstring(ast.parse(example.read_text())) or ""


def promise(example):
    return textwrap.dedent(header(example).partition("Prints:\n")[2])


def how_to_run(example):
    """Give what the header says after the name of the file."""
    found = re.search(rf"^To run: python examples/{example.name}\b(.*)", header(example), re.M)
    assert found is not None, "the header says how to run it"
    return found[1]


ON_SQLITE = [each for each in EXAMPLES if not how_to_run(each).startswith(" postgresql://")]
ON_POSTGRES = [each for each in EXAMPLES if "postgresql://" in how_to_run(each)]


def outcome_of(done):
    return done.stdout.strip("\n"), done.stderr, done.returncode


@pytest.mark.parametrize("example", ON_SQLITE, ids=lambda example: example.stem)
def test_an_example_prints_what_its_header_says(example, run):
    """The header also says how to install and how to run it."""
    done = run(example.stem)

    assert "To install:" in header(example)
    assert (promise(example), "", 0) == outcome_of(done), done.stdout + done.stderr


@pytest.mark.parametrize("example", ON_POSTGRES, ids=lambda example: example.stem)
def test_an_example_prints_the_same_on_postgres(example, run, postgres_url):
    """It is given a URL then."""
    done = run(example.stem, postgres_url)

    assert "To install:" in header(example)
    assert (promise(example), "", 0) == outcome_of(done), done.stdout + done.stderr
