"""The simulation keeps its word on what is right, finds what is wrong, and plays it again."""

import os
import pickle
import subprocess
import sys

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planton import ErrorEvent, InstructionEvent, InvalidArgumentError, Planton
from planton.storage import Acknowledged, _fleet
from planton.testing import MemoryStorage, SimulationError, simulate
from planton.testing.simulation._ledger import Ledger, TaskPlan
from planton.testing.simulation._many import main
from planton.testing.simulation._world import FAULTS

SEEDS = (104, 131, 136, 17, 24, 16, 20, 19, 5, *range(60))  # first those that find what is rare


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**64))
def test_a_fleet_keeps_its_word_whatever_goes_wrong(seed):
    """Cap, leases, receipts, progress, wake-ups, grace."""
    report = simulate(seed)

    assert report.counts["ends"] >= 5


def test_every_kind_of_fault_strikes():
    """Within a few seeds, and nothing is broken."""
    counts = [simulate(seed).counts for seed in range(12)]

    assert {*FAULTS, "claims", "deliveries", "ends", "stale"} == set().union(*counts)


def test_without_faults_nothing_goes_wrong():
    """What is left is a fleet at work."""
    report = simulate(1, faults=())

    assert {"claims", "deliveries", "ends"} == {
        name for name, count in report.counts.items() if count
    }
    assert report.duration > 300


def test_a_seed_plays_the_same_in_every_process():
    """Byte for byte, whatever the hash seed is."""
    command = [sys.executable, "-m", "planton.testing", "simulate", "--seed", "3", "--trace"]
    traces = [
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout.splitlines()
        for hash_seed in (1, 2, 3)
    ]

    trace = "\n".join(simulate(3).trace).encode().splitlines()
    assert [trace] * 3 == [lines[: len(trace)] for lines in traces]


@pytest.fixture
def quiet(monkeypatch):
    """Dispatchers that rarely tell that they live: that is half of what happens."""
    monkeypatch.setattr(_fleet, "BEAT", 100.0)


# What is wrong with these is what a simulation is for.


class BreaksTheCap(MemoryStorage):
    def queue_task(self, name, **options):
        task = super().queue_task(name, **options)

        async def schedule(request):
            return await task.schedule(attrs.evolve(request, concurrency=request.concurrency + 1))

        return attrs.evolve(task, schedule=schedule)


class LocksNothing(MemoryStorage):
    """Claims by what it has counted before, in another transaction."""

    def __init__(self, **options):
        super().__init__(**options)
        backend, counted = self._backend, {}
        exchange, claim = backend.exchange, backend._claim

        async def count_then_exchange(reports, requests):
            names = [request.rule.task_name for request in requests]
            counted.update(zip(names, map(len, await backend.active(names)), strict=True))
            return await exchange(reports, requests)

        def claim_by_count(own, request):
            name = request.rule.task_name
            active = len(self.instructions(name, "active"))
            more = request.concurrency + active - counted[name]
            return claim(own, attrs.evolve(request, concurrency=more))

        backend.exchange, backend._claim = count_then_exchange, claim_by_count


class KeepsClaimsForEver(MemoryStorage):
    def queue_task(self, name, **options):
        return super().queue_task(name, **{**options, "lease": 1e8})


class RescuesLiveWork(MemoryStorage):
    def queue_task(self, name, **options):
        return super().queue_task(name, **{**options, "lease": 1.0})


class LosesReleasedClaims(MemoryStorage):
    async def _give_back(self, claims):
        await super()._give_back(claims)
        for claim in claims:
            sql = "DELETE FROM planton_pending WHERE instruction = ?"
            self.connection.execute(sql, [claim.instruction])


class ChecksNoReceipt(MemoryStorage):
    """Changes the claim that an instruction has now, whoever has it."""

    async def report_many(self, reports):
        return [await self.report_one(*report) for report in reports]

    async def report_one(self, kind, receipts, values):
        receipts = [receipts] if isinstance(receipts, str) else receipts
        current = {self.current(receipt): receipt for receipt in receipts}
        (answer,) = await super().report_many([(kind, list(current), values)])
        return Acknowledged.of(receipts, [current[each] for each in answer.applied])

    def current(self, receipt):
        sql = "SELECT id || '.' || token FROM planton_active WHERE id = ?"
        row = self.connection.execute(sql, [receipt.partition(".")[0]]).fetchone()
        return row[0] if row else receipt


class EndsNothing(MemoryStorage):
    async def complete(self, receipts, result=None):
        return await self.release(receipts)


class WakesNobody(MemoryStorage):
    async def serve(self, planton, *, task_status):
        task_status.started()


class TellsNoTimes(MemoryStorage):
    def queue_task(self, name, **options):
        task = super().queue_task(name, **options)

        async def schedule(request):
            return attrs.evolve(await task.schedule(request), due_in=None)

        return attrs.evolve(task, schedule=schedule)


class IgnoresWakeUpsDuringAttempts(Planton):
    def _wake(self, entry):
        if not entry.is_attempting:
            super()._wake(entry)


class NeverPolls(Planton):
    def register(self, task):
        super().register(attrs.evolve(task, delay=lambda number: 1e9))


class GivesUpOnErrors(Planton):
    def __init__(self, **options):
        super().__init__(**options)
        self.on(ErrorEvent, lambda event: event.stage == "schedule" and self.pause(event.task_name))


class DeliversTwice(Planton):
    def on(self, event_type, listener=None):
        if event_type is InstructionEvent:
            super().on(event_type, listener)
        return super().on(event_type, listener)


class TakesItsTime(Planton):
    def __init__(self, **options):
        super().__init__(**{**options, "grace": 1000})


class NeverTerminates(Planton):
    async def terminate(self):
        pass


class Crashes(MemoryStorage):
    async def enqueue(self, *arguments, **options):
        raise ZeroDivisionError


def as_option(mutation):
    return {"planton" if issubclass(mutation, Planton) else "storage": mutation}


@pytest.mark.parametrize(
    ("mutation", "violation"),
    (
        (BreaksTheCap, "cap exceeded"),
        (LocksNothing, "cap exceeded"),
        (KeepsClaimsForEver, "no progress"),
        (RescuesLiveWork, "claimed twice"),
        (LosesReleasedClaims, "no progress"),
        (ChecksNoReceipt, "late write applied"),
        (EndsNothing, "claimed after its end"),
        (WakesNobody, "a wake-up was lost"),
        (TellsNoTimes, "a time was missed"),
        (IgnoresWakeUpsDuringAttempts, "a wake-up was lost"),
        (NeverPolls, "no progress"),
        (GivesUpOnErrors, "no progress"),
        (DeliversTwice, "delivered twice"),
        (TakesItsTime, "did not return within its grace"),
        (NeverTerminates, "did not return within its grace"),
        (Crashes, "ZeroDivisionError"),
    ),
)
def test_what_is_broken_is_found(mutation, violation, quiet):
    """Each promise can fail, within a few seeds."""
    found = []
    for seed in SEEDS:
        try:
            simulate(seed, **as_option(mutation))
        except SimulationError as error:
            found.append(str(error))
            if violation in error.violation:
                break
    else:
        raise AssertionError(f"not found: {found}")

    assert f"seed {seed}: " in found[-1]
    assert f"python -m planton.testing simulate --seed {seed} --trace" in found[-1]


@pytest.mark.parametrize("kind", ("heartbeat", "release", "fail", "complete"))
async def test_a_late_write_is_seen_whatever_it_writes(kind):
    """If it is acknowledged; and nothing is written into the books."""
    problems = []
    ledger = Ledger(problems.append, {"task": TaskPlan("task", 1, lease=10.0, delay=60.0)})
    ledger.enqueued(("task", "a"), retries=0)
    ledger.claimed("task", {"a": "new"})
    ledger.apply(kind, ("task", "a"), "old")

    assert ["late write applied"] == [problem.split(":")[0] for problem in problems]
    assert "new" == ledger.held["task", "a"].receipt


@pytest.mark.parametrize(
    ("fault", "mutation"),
    (
        ("callback raises", GivesUpOnErrors),
        ("callback hangs", GivesUpOnErrors),
        ("answer is lost", KeepsClaimsForEver),
        ("node dies after its claim", KeepsClaimsForEver),
        ("node dies", KeepsClaimsForEver),
        ("wake-up is lost", NeverPolls),
        ("clock is skewed", ChecksNoReceipt),
        ("storage refuses", GivesUpOnErrors),
        ("storage is slow", LocksNothing),
        ("listener raises", LosesReleasedClaims),
        ("listener is slow", TakesItsTime),
        ("consumer dies", KeepsClaimsForEver),
        ("consumer is late", ChecksNoReceipt),
    ),
)
def test_every_fault_finds_what_is_not_found_without_it(fault, mutation, quiet):
    """With it alone a seed breaks that passes with none."""
    assert fault in FAULTS
    for seed in SEEDS:
        try:
            simulate(seed, faults=(), **as_option(mutation))
        except SimulationError:
            continue
        try:
            simulate(seed, faults=(fault,), **as_option(mutation))
        except SimulationError:
            break
    else:
        raise AssertionError("finds nothing")


@pytest.mark.parametrize(
    ("seed", "options", "argument"),
    ((-1, {}, "seed"), (1.5, {}, "seed"), (1, {"faults": ["bad luck"]}, "faults")),
)
def test_what_cannot_be_used_is_refused(seed, options, argument):
    """Before anything happens."""
    with pytest.raises(InvalidArgumentError) as caught:
        simulate(seed, **options)

    assert argument == caught.value.argument


def test_the_command_runs_many_seeds_in_several_processes(capsys):
    """And counts what happened."""
    assert 0 == main(["simulate", "--seeds", "9", "--processes", "2"])
    assert "9 seeds, 0 broken" in capsys.readouterr().out


def test_the_command_shows_what_is_broken(capsys, monkeypatch):
    """And goes on."""
    monkeypatch.setattr(MemoryStorage, "enqueue", Crashes.enqueue)

    assert 1 == main(["simulate", "--seed", "7", "--seeds", "2", "--processes", "1"])
    out = capsys.readouterr().out
    assert "seed 7: something raised" in out
    assert "2 seeds, 2 broken" in out


def test_an_error_comes_back_whole_from_another_process():
    """Pickled and read again."""
    error = pickle.loads(pickle.dumps(SimulationError(7, "cap exceeded", ["0 a line"])))

    assert (7, "cap exceeded", ("0 a line",)) == (error.seed, error.violation, error.trace)
