"""The command that simulates many fleets, in several processes, or one again."""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from planton.testing.simulation._simulate import SimulationError, SimulationReport, simulate

Result = SimulationReport | SimulationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m planton.testing")
    command = parser.add_subparsers(required=True).add_parser("simulate")
    command.add_argument("--seed", type=int, default=0, help="the first, or the only one")
    command.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    command.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    command.add_argument("--trace", action="store_true", help="print all that happened")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.seeds)
    return _run(seeds, options.processes, trace=options.trace)


def _run(seeds: Sequence[int], processes: int, *, trace: bool) -> int:
    began, counts, broken = time.monotonic(), Counter[str](), 0
    for result in _results(seeds, min(processes, len(seeds))):
        if trace:
            _say(*result.trace)
        if isinstance(result, SimulationError):
            _say(str(result))
            broken += 1
        else:
            counts.update(result.counts)
    _say(*(f"{count:10,}  {name}" for name, count in sorted(counts.items())))
    _say(f"{len(seeds)} seeds, {broken} broken, {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


def _results(seeds: Iterable[int], processes: int) -> Iterator[Result]:
    if processes <= 1:
        yield from map(_try, seeds)
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            yield from pool.imap(_try, seeds, chunksize=20)


def _try(seed: int) -> Result:
    try:
        return simulate(seed)
    except SimulationError as error:
        return error


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
