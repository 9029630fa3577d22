"""How time is taken: contenders in turn, medians, and nothing timed that was not checked."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Contender", "Native", "Timing", "alternate"]


@dataclass(frozen=True)
class Native:
    """A contender that repeats and times itself outside Python: ``seconds(calls)``."""

    seconds: Callable[[int], float]


Contender = Callable[[], object] | Native


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of the rounds, and the quartiles around it."""

    median: float
    lower: float
    upper: float
    by_round: dict[int, float]
    """The timing of each round that the contender took part in."""


FEWEST = 3
"""Timings of a slow contender."""

SLOW = 0.05
"""Seconds of a call that takes part in fewer rounds."""


def alternate(contenders: Mapping[str, Contender], seconds: float, rounds: int = 9) -> dict[str, Timing]:
    """Time contenders in turn, each round in a random order, and return the timing of each.

    What a contender leaves in the caches is the next one's burden, which must not always be the same one.

    Parameters
    ----------
    contenders : mapping of name to function
        What to time. Each round calls one of them so often that it takes its share of the time.
    seconds : float
        About how long all of it may take; slow contenders are timed in fewer rounds, but in 3 at least.
    rounds : int
        How many timings of each there are to take the median of.
    """
    share = seconds / rounds / len(contenders)
    calls: dict[str, int] = {}
    every: dict[str, int] = {}
    for name, contender in contenders.items():
        once = _warm(contender, share)
        calls[name] = max(1, int(share / max(once, 1e-9)))
        every[name] = (rounds - 1) // (FEWEST - 1) if once > max(share, SLOW) else 1
    times: dict[str, dict[int, float]] = {name: {} for name in contenders}
    order = list(contenders)
    chance = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(rounds):
            chance.shuffle(order)
            for name in order:
                if k % every[name] == 0:
                    times[name][k] = _timed(contenders[name], calls[name])
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(taken) for name, taken in times.items()}


def _timed(contender: Contender, calls: int) -> float:
    if isinstance(contender, Native):
        return contender.seconds(calls) / calls
    repeats = range(calls)
    start = time.perf_counter()
    for _ in repeats:
        contender()
    return (time.perf_counter() - start) / calls


def _warm(contender: Contender, share: float) -> float:
    """Return the seconds of a call; the first touches pages and compiles what is compiled late, and does not count."""
    _timed(contender, 1)
    once = _timed(contender, 1)
    return once if once > share else _timed(contender, max(1, min(100, int(share / max(once, 1e-7) / 4))))


def _timing(by_round: dict[int, float]) -> Timing:
    lower, median, upper = statistics.quantiles(by_round.values(), n=4, method="inclusive")
    return Timing(median, lower, upper, by_round)
