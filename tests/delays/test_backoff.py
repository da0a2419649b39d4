"""Constant, linear and exponential delays."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planton import InvalidArgumentError, delays

attempts = st.one_of(st.integers(0, 100), st.sampled_from([1_000, 10**6]))
seconds = st.floats(min_value=0.001, max_value=1e6)


def give_most() -> float:
    return math.nextafter(1, 0)


def test_constant_is_the_same_for_every_attempt() -> None:
    """The attempt number makes no difference to `constant`."""
    delay = delays.constant(2)

    assert [2.0, 2.0, 2.0] == [delay(0), delay(1), delay(10**6)]


def test_zero_seconds_are_allowed() -> None:
    """`constant(0)` polls as fast as it can."""
    assert delays.constant(0)(5) == 0.0


def test_linear_starts_at_initial_and_ends_at_maximum() -> None:
    """`linear` adds one step for each attempt that dispatched nothing."""
    delay = delays.linear(initial=1, step=2.5, maximum=7)

    assert [1.0, 3.5, 6.0, 7.0, 7.0] == [delay(n) for n in range(5)]


def test_linear_does_not_overflow() -> None:
    """A very large step at a very large attempt number is the maximum."""
    assert delays.linear(0, sys.float_info.max, 60)(10**6) == 60.0


def test_exponential_multiplies_by_the_factor_up_to_maximum() -> None:
    """Without jitter the ceiling itself is the delay."""
    delay = delays.exponential(initial=1, maximum=50, factor=3, jitter=None)

    assert [1.0, 3.0, 9.0, 27.0, 50.0, 50.0] == [delay(n) for n in range(6)]


def test_exponential_doubles_with_full_jitter_by_default() -> None:
    """The chance is multiplied with the whole ceiling."""
    delay = delays.exponential(initial=1, maximum=60, random=lambda: 0.25)

    assert [0.25, 0.5, 1.0, 15.0] == [delay(n) for n in (0, 1, 2, 10)]


def test_equal_jitter_keeps_half_of_the_ceiling() -> None:
    """The chance is multiplied with the upper half only."""
    delay = delays.exponential(initial=1, maximum=60, jitter="equal", random=lambda: 0.25)

    assert [0.625, 1.25, 2.5, 37.5] == [delay(n) for n in (0, 1, 2, 10)]


def test_full_jitter_may_be_zero() -> None:
    """A wait of nothing is a part of full jitter, also for the first attempt."""
    delay = delays.exponential(0.1, 60, random=lambda: 0.0)

    assert [0.0, 0.0] == [delay(0), delay(8)]


@pytest.mark.parametrize("jitter", ("full", "equal", None))
def test_exponential_does_not_overflow(jitter: delays.Jitter | None) -> None:
    """A million attempts that dispatched nothing still wait `maximum` at most."""
    delay = delays.exponential(initial=0.1, maximum=60, jitter=jitter, random=give_most)

    assert delay(10**6) == pytest.approx(60.0)


def test_chance_comes_from_the_random_module_unless_given() -> None:
    """Two delays of the same dispatcher differ, so that fleets spread."""
    delay = delays.exponential(initial=1, maximum=60)

    assert len({delay(5) for _ in range(20)}) > 1


@given(seconds, seconds, st.floats(1, 100), attempts)
def test_ceiling_never_falls_and_stays_in_bounds(
    initial: float, more: float, factor: float, attempt_number: int
) -> None:
    """The ceiling is from `initial` to `maximum` and grows with the attempt number."""
    delay = delays.exponential(initial, initial + more, factor, jitter=None)

    assert initial <= delay(attempt_number) <= delay(attempt_number + 1) <= initial + more


@given(st.floats(0, 1, exclude_max=True), attempts)
def test_jitter_only_shortens(chance: float, attempt_number: int) -> None:
    """Full jitter is from 0 to the ceiling, equal jitter from half of it."""
    ceiling = delays.exponential(0.1, 60, jitter=None)(attempt_number)
    full = delays.exponential(0.1, 60, random=lambda: chance)(attempt_number)
    equal = delays.exponential(0.1, 60, jitter="equal", random=lambda: chance)(attempt_number)

    assert 0 <= full <= ceiling
    assert ceiling / 2 <= equal <= ceiling


BAD_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, True, None, "1", 1j, 10**400]


@pytest.mark.parametrize("value", BAD_SECONDS)
@pytest.mark.parametrize(
    ("argument", "make"),
    (
        ("seconds", lambda value: delays.constant(value)),
        ("initial", lambda value: delays.linear(value, 1, 60)),
        ("step", lambda value: delays.linear(1, value, 60)),
        ("maximum", lambda value: delays.linear(1, 1, value)),
        ("initial", lambda value: delays.exponential(value, 60)),
        ("maximum", lambda value: delays.exponential(1, value)),
        ("factor", lambda value: delays.exponential(1, 60, value)),
    ),
)
def test_what_is_no_number_of_seconds_is_refused(argument, make, value) -> None:
    """Negative, endless, not a number, a bool or another type: an error names the argument."""
    with pytest.raises(InvalidArgumentError) as caught:
        make(value)

    assert (argument, value) == (caught.value.argument, caught.value.value)


@pytest.mark.parametrize(
    ("argument", "make"),
    (
        ("maximum", lambda: delays.linear(initial=2, step=1, maximum=1)),
        ("maximum", lambda: delays.exponential(initial=2, maximum=1)),
        ("initial", lambda: delays.exponential(initial=0, maximum=1)),
        ("factor", lambda: delays.exponential(1, 60, factor=0.5)),
        ("jitter", lambda: delays.exponential(1, 60, jitter="half")),
        ("jitter", lambda: delays.exponential(1, 60, jitter=False)),
    ),
)
def test_what_makes_no_sense_is_refused(argument, make) -> None:
    """An error names the argument that does not fit."""
    with pytest.raises(InvalidArgumentError) as caught:
        make()

    assert argument == caught.value.argument


def test_initial_may_equal_maximum_and_factor_may_be_one() -> None:
    """The bounds themselves are allowed."""
    assert delays.linear(initial=3, step=1, maximum=3)(1) == 3.0
    assert delays.exponential(initial=3, maximum=3, factor=1, jitter=None)(1) == 3.0


def test_delays_say_what_they_are() -> None:
    """The repr of a delay has its numbers, for logs and `explain`."""
    made = [delays.constant(1), delays.linear(0, 1, 60), delays.exponential(0.1, 60)]

    assert [
        "constant(1)",
        "linear(0, 1, 60)",
        "exponential(0.1, 60, 2, 'full')",
    ] == [repr(delay) for delay in made]
