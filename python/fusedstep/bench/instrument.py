"""How time is taken: contenders in turn, medians, and nothing timed that was not checked."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Timing", "alternate"]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of the rounds, and the quartiles around it."""

    median: float
    lower: float
    upper: float


def alternate(contenders: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 9) -> dict[str, Timing]:
    """Time contenders in turn, each round in another order, and return the timing of each.

    Parameters
    ----------
    contenders : mapping of name to function
        What to time. Each round calls one of them so often that it takes its share of the time.
    seconds : float
        About how long all of it may take.
    rounds : int
        How many timings of each there are to take the median of.
    """
    share = seconds / rounds / len(contenders)
    calls = {name: _calls(function, share) for name, function in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order:
                times[name].append(_timed(contenders[name], calls[name]))
            order = [*order[1:], order[0]]
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(taken) for name, taken in times.items()}


def _timed(function: Callable[[], object], calls: int) -> float:
    repeats = range(calls)
    start = time.perf_counter()
    for _ in repeats:
        function()
    return (time.perf_counter() - start) / calls


def _calls(function: Callable[[], object], seconds: float) -> int:
    function()  # the first call touches pages and compiles what is compiled late
    once = min(_timed(function, 1) for _ in range(3))
    return max(1, int(seconds / max(once, 1e-7)))


def _timing(times: list[float]) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0])
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(statistics.median(times), lower, upper)
