"""Docstrings with examples are true."""

import doctest

import pytest

import planton._loop.explain
import planton.delays


@pytest.mark.parametrize(
    "module", (planton._loop.explain, planton.delays), ids=lambda module: module.__name__
)
def test_the_examples_of_a_module_are_true(module):
    """Every `>>>` in its docstrings."""
    failed, tried = doctest.testmod(module)

    assert 0 == failed
    assert tried > 0
