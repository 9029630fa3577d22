"""The microbenchmarks as a pytest-benchmark suite: `python -m pytest bench/`; each asserts its answer.

What `python -m fusedstep bench` measures, in the form that pytest-benchmark can store and compare between commits.
"""

from __future__ import annotations

import numpy as np
import pytest

from fusedstep.bench.cases import (
    CASES,
    LAYOUTS,
    Data,
    bound,
    by_name,
    divider,
    error,
    error_of_optimizers,
    lists,
    traffic,
)
from fusedstep.bench.models import MODELS, PEERS_OF_LISTS, verdict_of_list
from fusedstep.bench.peers import PEERS, verdict

SIZES = (16, 1_000, 30_000, 1_000_000)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_size = pytest.mark.parametrize("n", SIZES)


def group(case, n, dtype="float32", what=LAYOUTS[0]):
    return f"{case.name}, {n:,} of {dtype}, {what}"


@each_case
@each_size
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_function(benchmark, case, n, dtype):
    assert error(case, dtype) == "0 ulp"
    benchmark.group = group(case, n, dtype)
    benchmark(Data(case, n, dtype).update)


@each_case
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layout(benchmark, case, layout):
    assert error(case, "float32", layout) == "0 ulp"
    n = 1_000_000
    benchmark.group = group(case, n, what=layout)
    benchmark(Data(case, n, "float32", layout).update)


@each_case
@each_size
def test_kernel_from_cpp(benchmark, case, n):
    assert error(case, "float32") == "0 ulp"
    benchmark.group = group(case, n)
    benchmark(Data(case, n, "float32").kernel().seconds, 1)


@each_case
@each_size
def test_traffic(benchmark, case, n):
    data = Data(case, n, "float32")
    before = data.param.copy()
    benchmark.group = group(case, n)
    benchmark(traffic(data).seconds, 1)
    assert before.tobytes() == data.param.tobytes()


@pytest.mark.parametrize("case", [case for case in CASES if case.divisions], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divider(benchmark, case, dtype):
    n = 30_000
    benchmark.group = group(case, n, dtype)
    assert benchmark(divider(case, n, np.dtype(dtype)).seconds, 1) > 0


@each_case
@pytest.mark.parametrize("model", MODELS)
def test_optimizer(benchmark, case, model):
    assert error_of_optimizers(case, "float32") == "0 ulp"
    sizes = MODELS[model]
    benchmark.group = group(case, sum(sizes), what=model)
    report = benchmark(bound(case, *lists(case, sizes, "float32")))
    assert report.step > 0
    assert not report.skipped


def answered(said, step):
    """Skip a peer that is missing or has no such rule; one with a wrong answer is expected to fail."""
    if step is None:
        (pytest.xfail if said.startswith(("wrong", "failed")) else pytest.skip)(said)
    return step


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Rprop", "Rprop, irprop-"])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.filterwarnings("ignore")  # what peers warn of is theirs
def test_peer(benchmark, name, peer):
    case, n = by_name(name), 30_000
    said, step = verdict(peer, case, Data(case, n, "float32"), threads=1)
    step = answered(said, step)
    benchmark.group = group(case, n)
    benchmark.extra_info["error"] = said
    benchmark(step)


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Rprop", "Rprop, irprop-"])
@pytest.mark.parametrize("model", ["perceptron 64-256-10", "100 x 10,000"])
@pytest.mark.parametrize("peer", PEERS_OF_LISTS, ids=lambda peer: peer.name)
@pytest.mark.filterwarnings("ignore")
def test_peer_of_lists(benchmark, name, model, peer):
    case, sizes = by_name(name), MODELS[model]
    said, step = verdict_of_list(peer, case, *lists(case, sizes, "float32"), threads=1)
    step = answered(said, step)
    benchmark.group = group(case, sum(sizes), what=model)
    benchmark.extra_info["error"] = said
    benchmark(step)
