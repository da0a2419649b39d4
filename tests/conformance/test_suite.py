"""The suite itself: what it says to those who use it."""

import pytest

from planton.testing import StorageConformance
from planton.testing.conformance._base import refused


@pytest.mark.parametrize(
    ("hook", "arguments"),
    (("transaction", ()), ("locked", ("task",))),
)
def test_a_hook_that_a_capability_needs_must_be_given(hook, arguments):
    """A suite that says it can and does not say how is an error, not a pass."""
    with pytest.raises(NotImplementedError):
        getattr(StorageConformance(), hook)(None, *arguments)


@pytest.mark.parametrize(
    ("hook", "arguments"),
    (
        ("advance", (1.0,)),
        ("add_rows", (1,)),
        ("remove_rows", (1,)),
        ("insert", ("task", "a")),
    ),
)
async def test_an_async_hook_that_is_needed_must_be_given(hook, arguments):
    """The same for those that are awaited."""
    with pytest.raises(NotImplementedError):
        await getattr(StorageConformance(), hook)(None, *arguments)


def test_what_should_be_refused_and_is_not_fails():
    """With the name of the error that was missing."""
    with pytest.raises(AssertionError, match="no ValueError was raised"), refused(ValueError):
        pass


def test_an_error_that_does_not_name_its_cause_fails():
    """The message is a promise, too."""
    with pytest.raises(AssertionError, match="lease"), refused(ValueError, "lease"):
        raise ValueError("something is wrong")


def test_every_test_says_what_it_promises():
    """In one sentence, for those whose storage fails it."""
    tests = {name: getattr(StorageConformance, name) for name in dir(StorageConformance)}
    tests = {name: test for name, test in tests.items() if name.startswith("test_")}

    assert len(tests) > 80
    assert [] == [name for name, test in tests.items() if not test.__doc__]
