"""The examples in docstrings and on the page are run."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

from planton import delays

PAGE = Path(__file__).parents[2] / "docs" / "delays.md"


class FencedParser(doctest.DocTestParser):
    """Reads Markdown: the fence that ends an example is not part of what it prints."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^```.*$", "", string, flags=re.MULTILINE), name)


def test_examples_in_docstrings_are_true() -> None:
    """Every doctest of the module passes."""
    assert 0 == doctest.testmod(delays).failed


@pytest.mark.parametrize(
    "name", [name for name in delays.__all__ if inspect.isfunction(getattr(delays, name))]
)
def test_every_function_has_an_example(name: str) -> None:
    """Public functions show how they are called."""
    assert ">>>" in (getattr(delays, name).__doc__ or "")


def test_examples_on_the_page_are_true() -> None:
    """Every example of docs/delays.md passes, and it has some."""
    done = doctest.testfile(str(PAGE), module_relative=False, parser=FencedParser())

    assert 0 == done.failed
    assert done.attempted > 10
