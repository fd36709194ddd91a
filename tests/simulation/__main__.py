"""`./run simulate`: runs seeds of the simulator, as many as wanted, and says how each failure is repeated."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from time import monotonic

from tests.simulation.run import Failed, simulate

LINE_EVERY_S = 10.0


def main(argv: list[str] | None = None) -> int:
    """Run the seeds asked for; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="./run simulate", description=(
        "Simulates a broker and everybody around it in virtual time. One seed is one run, and always the same run."))
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first one (default %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS", help="stop after so long")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    options = parser.parse_args(argv)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    return _run(seeds, options.within, keep_going=options.keep_going)


def _run(seeds: range | list[int], within_s: float, *, keep_going: bool) -> int:
    began = said_at = monotonic()
    counts: Counter[str] = Counter()
    done = events = 0
    failed: list[int] = []
    for seed in seeds:
        try:
            result = simulate(seed)
        except Failed as exc:
            print(exc, flush=True)
            failed.append(seed)
            if not keep_going:
                break
        else:
            counts.update(result.counts)
            events += result.events
        done += 1
        now = monotonic()
        if now - said_at >= LINE_EVERY_S:
            said_at = now
            print(f"{now - began:.0f} s: {done} seeds, {len(failed)} failed", file=sys.stderr, flush=True)
        if now - began >= within_s:
            break
    for name, times in sorted(counts.items()):
        print(f"{times:9}  {name}")
    print(f"{done} seeds, {events} events, {monotonic() - began:.1f} s; failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
