"""Docstrings with examples are true."""

import doctest

import pytest

import planton._loop.reason
import planton._text
import planton.delays
import planton_brokers._port
import planton_brokers.webhook

BROKERS = (planton_brokers._port, planton_brokers.webhook)
MODULES = (planton._loop.reason, planton._text, planton.delays, *BROKERS)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_of_a_module_are_true(module):
    """Every `>>>` in its docstrings."""
    failed, tried = doctest.testmod(module)

    assert 0 == failed
    assert tried > 0
