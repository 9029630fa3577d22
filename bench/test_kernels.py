"""The microbenchmarks as a pytest-benchmark suite: `python -m pytest bench/`; each asserts its answer.

What `python -m bench` measures, in the form that pytest-benchmark can store and compare between commits.
"""

from __future__ import annotations

import pytest

from fusedstep._bench import divider, kernel, streaming

from .cases import CASES, LAYOUTS, RIGHT, Arrays, by_name, error, error_of_optimizers, lists
from .lists import MODELS, PEERS_OF_LISTS, verdict_of_list
from .peers import PEERS, verdict

SIZES = (16, 1_000, 30_000, 1_000_000)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_size = pytest.mark.parametrize("n", SIZES)


def group(case, n, dtype="float32", what=LAYOUTS[0]):
    return f"{case.name}, {n:,} of {dtype}, {what}"


@each_case
@each_size
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_function(benchmark, case, n, dtype):
    assert error(case, dtype) == RIGHT
    benchmark.group = group(case, n, dtype)
    benchmark(Arrays(case, n, dtype).call)


@each_case
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layout(benchmark, case, layout):
    assert error(case, "float32", layout) == RIGHT
    n = 1_000_000
    benchmark.group = group(case, n, what=layout)
    benchmark(Arrays(case, n, "float32", layout).call)


@each_case
@each_size
def test_kernel_from_cpp(benchmark, case, n):
    assert error(case, "float32") == RIGHT
    benchmark.group = group(case, n)
    benchmark(kernel(Arrays(case, n, "float32")), 1)


@each_case
@each_size
def test_streaming_rate(benchmark, case, n):
    data = Arrays(case, n, "float32")
    before = data.param.copy()
    benchmark.group = group(case, n)
    benchmark(streaming(data), 1)
    assert before.tobytes() == data.param.tobytes()


@pytest.mark.parametrize("case", [case for case in CASES if any(case.roots_and_divisions)], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divider_rate(benchmark, case, dtype):
    n = 30_000
    benchmark.group = group(case, n, dtype)
    assert benchmark(divider(Arrays(case, n, dtype)), 1) > 0


@each_case
@pytest.mark.parametrize("model", MODELS)
def test_optimizer(benchmark, case, model):
    assert error_of_optimizers(case, "float32") == RIGHT
    sizes = MODELS[model]
    benchmark.group = group(case, sum(sizes), what=model)
    params, grads = lists(case, sizes, "float32")
    report = benchmark(case.class_(params, **case.options).step, grads)
    assert report.step > 0
    assert not report.skipped


def answered(said, contender):
    """Skip a peer that is missing or has no such rule; one with a wrong answer is expected to fail."""
    if contender is None:
        (pytest.xfail if said.startswith(("wrong", "failed")) else pytest.skip)(said)
    return contender


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Rprop", "Rprop, irprop-"])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.filterwarnings("ignore")  # warnings of peers don't matter here
def test_peer(benchmark, name, peer):
    case, n = by_name(name), 30_000
    said, contender = verdict(peer, case, Arrays(case, n, "float32"), threads=1)
    contender = answered(said, contender)
    benchmark.group = group(case, n)
    benchmark.extra_info["error"] = said
    benchmark(contender, 1)


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Rprop", "Rprop, irprop-"])
@pytest.mark.parametrize("model", ["perceptron 64-256-10", "100 x 10,000"])
@pytest.mark.parametrize("peer", PEERS_OF_LISTS, ids=lambda peer: peer.name)
@pytest.mark.filterwarnings("ignore")
def test_peer_of_lists(benchmark, name, model, peer):
    case, sizes = by_name(name), MODELS[model]
    said, contender = verdict_of_list(peer, case, *lists(case, sizes, "float32"), threads=1)
    contender = answered(said, contender)
    benchmark.group = group(case, sum(sizes), what=model)
    benchmark.extra_info["error"] = said
    benchmark(contender, 1)
