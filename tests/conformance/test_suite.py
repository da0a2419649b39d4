"""The suite itself: what it says to those who use it."""

import subprocess
import sys

import pytest

from planton.testing import StorageConformance


@pytest.mark.parametrize(
    ("hook", "arguments"),
    (
        ("transaction", ()),
        ("locked", ("task",)),
        ("add_rows", (1,)),
        ("remove_rows", (1,)),
        ("insert", ("task", "a")),
    ),
)
async def test_what_needs_a_hook_that_is_not_given_is_skipped(hook, arguments):
    """By name, so that it is shown what the storage does not promise."""
    with pytest.raises(pytest.skip.Exception, match=f"its tests give no `{hook}`"):
        await getattr(StorageConformance(), hook)(None, *arguments)


async def test_without_a_way_to_let_time_pass_a_suite_fails():
    """That is no capability."""
    with pytest.raises(NotImplementedError):
        await StorageConformance().advance(None, 1.0)


def test_the_suite_is_loaded_when_it_is_asked_for():
    """So that all else of `planton.testing` works without pytest."""
    code = "import sys; sys.modules['pytest'] = None; from planton.testing import simulate"

    assert 0 == subprocess.run([sys.executable, "-c", code], timeout=60).returncode


def test_every_test_says_what_it_promises():
    """In one sentence, for those whose storage fails it."""
    tests = {name: getattr(StorageConformance, name) for name in dir(StorageConformance)}
    tests = {name: test for name, test in tests.items() if name.startswith("test_")}

    assert len(tests) > 80
    assert [] == [name for name, test in tests.items() if not test.__doc__]
