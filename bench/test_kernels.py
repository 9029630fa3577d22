"""The microbenchmarks as a pytest-benchmark suite: `python -m pytest bench/`; each asserts its answer.

What `python -m fusedstep bench` measures, in the form that pytest-benchmark can store and compare between commits.
"""

from __future__ import annotations

import pytest

from fusedstep.bench.cases import CASES, Data, divider, traffic
from fusedstep.bench.peers import PEERS, verdict
from fusedstep.bench.rows import bound

SIZES = (16, 1_000, 30_000, 1_000_000)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernel(benchmark, case, n, dtype):
    checked = Data(case.to_check(), n, dtype)
    expected = checked.copy()
    checked.update()
    expected.update_plain()
    assert checked.param.tobytes() == expected.param.tobytes()
    assert all(checked.states[name].tobytes() == expected.states[name].tobytes() for name in case.states)
    benchmark.group = f"{case.name}, {n:,} of {dtype}"
    benchmark(Data(case, n, dtype).update)


@pytest.mark.parametrize("n", SIZES)
def test_limits(benchmark, case, n):
    data = Data(case, n, "float32")
    before = data.param.copy()
    benchmark.group = f"{case.name}, {n:,} of float32"
    benchmark(traffic(case, data))
    assert before.tobytes() == data.param.tobytes()


@pytest.mark.parametrize("n", [1_000_000])
def test_divider(benchmark, n):
    benchmark.group = f"RMSprop, {n:,} of float32"
    assert benchmark(divider(n, data_type())) > 0


def data_type():
    return Data(CASES[0], 1, "float32").param.dtype


@pytest.mark.parametrize(("count", "n"), [(1, 16), (1, 1_000_000), (1_000, 1_000), (10_000, 16)])
def test_optimizer(benchmark, count, n):
    step = bound(CASES[0], n, data_type(), count)
    benchmark.group = f"RMSprop, {count:,} arrays of {n:,} of float32"
    report = benchmark(step)
    assert report.step > 0
    assert not report.skipped


@pytest.mark.parametrize("n", [30_000])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer(benchmark, case, peer, n):
    said, step = verdict(peer, Data(case, n, "float32"), threads=1)
    if step is None:
        pytest.skip(said)
    benchmark.group = f"{case.name}, {n:,} of float32"
    benchmark.extra_info["error"] = said
    benchmark(step)
