"""Where `planton.testing` finds the storage in memory, which an adapter brings."""

import pytest

import planton.testing
from planton.testing import _memory


def test_there_is_no_other_name():
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'SlowStorage'"):
        planton.testing.SlowStorage  # noqa: B018


def test_without_the_adapter_it_says_what_to_install(monkeypatch):
    """The core knows no database."""
    monkeypatch.setattr(_memory, "entry_points", lambda **_: ())

    with pytest.raises(ImportError, match=r"planton\[sqlite\]"):
        planton.testing.MemoryStorage  # noqa: B018
