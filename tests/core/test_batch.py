"""What a source says beside its claims: the concurrency in force, and why it claimed nothing."""

import itertools
import logging

import pytest
import trio

from planton import Batch, InvalidArgumentError


def strict(bench, *answers, **options):
    return bench(*answers, cap="strict", **{"concurrency": 5, **options})


async def test_status_and_explain_say_what_is_in_force(bench):
    """An operator may have set another concurrency than the code's."""
    one = strict(bench, Batch([], active=1, concurrency=1), Batch(["a"], active=1, concurrency=7))
    async with one.planton:
        await trio.sleep(1.5)
        (status,) = one.planton.status()
        verdict = one.planton.explain("task")[0]

        assert (1, 1, ["saturated"]) == (status.active, status.concurrency, one.seen.outcomes)
        assert verdict.startswith("saturated: 1 of 1 active; next attempt in 0.5 s")
        await trio.sleep(1)

        assert 7 == one.planton.status()[0].concurrency
    assert 5 == one.schedule.requests[1].concurrency, "the source knows its own"
    assert "dispatched 1 of at most 5, 1 of 7 active before" in one.planton.explain("task")[-1]


async def test_an_override_that_is_taken_back_is_in_force_no_more(bench, caplog):
    """Both are in the log, once."""
    caplog.set_level(logging.INFO)
    override, own = Batch([], concurrency=2), Batch([], concurrency=5)
    one = strict(bench, override, override, OSError("down"), override, own, Batch([]))
    async with one.planton:
        await trio.sleep(3.5)

        assert 2 == one.planton.status()[0].concurrency, "an error says nothing of it"
        await trio.sleep(3)

        assert 5 == one.planton.status()[0].concurrency
    said = [record.getMessage() for record in caplog.records if "in force" in record.getMessage()]

    assert [
        "task 'task' has concurrency 2 in force, by the source",
        "task 'task' has concurrency 5 in force, by the task",
    ] == said


@pytest.mark.parametrize(
    ("outcome", "words"),
    (
        ("locked", "locked: another dispatcher is claiming"),
        ("paused", "paused: in the source"),
        (
            "limited",
            "limited: what is due waits for a limit of the source, such as full partitions",
        ),
    ),
)
async def test_why_a_source_claimed_nothing(bench, outcome, words):
    """If it is neither that nothing is due nor that all slots are taken."""
    one = strict(bench, Batch([], active=5, outcome=outcome))
    attempt = await one.planton.attempt("task")

    assert (outcome, 0) == (attempt.outcome, attempt.claimed)
    assert one.planton.explain("task")[1].startswith(words)


async def test_a_claim_that_was_locked_comes_again_soon_and_costs_no_attempt_number(bench):
    """The delay is for when nothing is due."""
    one = strict(bench, *[Batch([], outcome="locked")] * 3, ["a"], delay=100.0)
    async with one.planton:
        one.planton.wake()
        await trio.sleep(1)

    assert ["locked"] * 3 + ["dispatched"] == one.seen.outcomes
    assert [0] * 4 == [request.attempt_number for request in one.schedule.requests]
    assert all(0 < b - a <= 0.2 for a, b in itertools.pairwise(one.schedule.times))


async def test_a_source_may_say_itself_when_a_locked_claim_is_worth_trying_again(bench):
    """It knows more."""
    one = strict(bench, Batch([], outcome="locked", next_in=3), delay=1.0)
    await one.run_for(4.5)

    assert [1.0, 4.0] == one.schedule.times


async def test_what_is_paused_or_limited_backs_off(bench):
    """A resume wakes it; a limit says by due_in when it ends."""
    answers = [Batch([], outcome="paused"), Batch([], outcome="limited", due_in=0.5)]
    one = strict(bench, *answers, delay=lambda number: 2.0**number)
    await one.run_for(4)

    assert [1.0, 3.0, 3.5] == one.schedule.times
    assert [0, 1, 2] == [request.attempt_number for request in one.schedule.requests]


async def test_a_pause_in_the_source_and_its_end_are_in_the_log(bench, caplog):
    """Once each, whatever fails between."""
    caplog.set_level(logging.INFO)
    paused = Batch([], outcome="paused")
    one = strict(bench, paused, paused, Batch([], outcome="locked"), OSError("down"), paused, [])
    await one.run_for(6.5)
    said = [record.getMessage() for record in caplog.records if "source" in record.getMessage()]

    assert ["task 'task' is paused in the source", "task 'task' is resumed in the source"] == said


@pytest.mark.parametrize(
    "options",
    (
        {"concurrency": 0},
        {"concurrency": True},
        {"concurrency": 10**100},
        {"outcome": "nothing"},
        {"outcome": 5},
        {"active": -1},
        {"next_in": -1},
    ),
)
def test_a_batch_that_cannot_be_is_refused(options):
    """The field is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        Batch([], **options)

    assert caught.value.argument in options


async def test_an_outcome_beside_claims_is_dispatched(bench):
    """They count more."""
    one = strict(bench, Batch(["a"], outcome="limited", due_in=1))
    await one.run_for(1.5)

    assert ["dispatched"] == one.seen.outcomes


async def test_stuck_is_a_task_that_stays_saturated(bench):
    """Longer than its lease: what holds its slots may never end."""
    one = bench()
    one.active = ["gone"]
    async with one.planton:
        await trio.sleep(600)
        assert not one.planton.status()[0].stuck
        await trio.sleep(5)
        (status,) = one.planton.status()

        assert status.stuck
        assert 604 <= status.saturated_for <= 605
        assert one.planton.explain("task")[0].startswith("stuck: saturated for 60")
        one.active = []
        await trio.sleep(1)
        (status,) = one.planton.status()

        assert (False, None) == (status.stuck, status.saturated_for)
