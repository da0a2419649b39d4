"""The agenda against a dict that is searched from end to end."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from planton._loop.agenda import Agenda

KEYS = st.sampled_from("abcdef")
TIMES = st.floats(0, 100)


class AgendaMachine(RuleBasedStateMachine):
    """Whatever is done, it answers as the naive model does."""

    def __init__(self):
        super().__init__()
        self.agenda = Agenda()
        self.model = {}

    @rule(key=KEYS, due=TIMES, rank=st.integers(0, 3))
    def set(self, key, due, rank):
        self.agenda.set(key, due, rank)
        self.model[key] = (due, rank)

    @rule(key=KEYS)
    def discard(self, key):
        self.agenda.discard(key)
        self.model.pop(key, None)

    @rule(now=TIMES)
    def pop_due(self, now):
        due = self.agenda.pop_due(now)
        expected = [key for key, (at, _) in self.model.items() if at <= now]

        assert sorted(expected) == sorted(due)
        assert sorted(self.model[key] for key in due) == [self.model[key] for key in due]
        for key in due:
            del self.model[key]

    @rule()
    def clear(self):
        self.agenda.clear()
        self.model = {}

    @invariant()
    def agrees(self):
        assert len(self.model) == len(self.agenda)
        assert min(self.model.values(), default=(math.inf, 0))[0] == self.agenda.next_due()
        assert all(key in self.agenda for key in self.model)


TestAgenda = AgendaMachine.TestCase


def test_ties_keep_the_order_in_which_they_were_set():
    """Tasks that are due together take turns fairly."""
    agenda = Agenda()
    for key in "cab":
        agenda.set(key, 1.0)

    assert ["c", "a", "b"] == agenda.pop_due(1.0)


def test_a_key_that_is_set_again_and_again_does_not_fill_the_memory():
    """A task that is woken a million times during one long delay keeps one place."""
    agenda = Agenda()
    for number in range(10_000):
        agenda.set("woken", 1000.0 + number)

    assert len(agenda._times) < 100
    assert 10_999.0 == agenda.next_due()


def test_keys_that_are_due_at_the_same_time_are_one_item_of_the_heap():
    """Ten thousand idle tasks that are asked together cost one push and one pop."""
    agenda = Agenda()
    for key in range(1000):
        agenda.set(key, 1.0)

    assert 1 == len(agenda._times)
    assert list(range(1000)) == agenda.pop_due(1.0)
