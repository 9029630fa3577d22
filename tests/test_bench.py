"""The benchmark as an instrument: it checks what it times, names what it does not time, and writes what it found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fusedstep import _core
from fusedstep.__main__ import main
from fusedstep.bench import cases, models, peers, report, rows
from fusedstep.bench.cases import CASES, LAYOUTS, Data
from fusedstep.bench.instrument import FEWEST, Native, alternate

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_timed_gives_the_bits_of_the_reference(case, dtype):
    for layout in LAYOUTS:
        assert cases.error(case, dtype, layout) == "0 ulp", layout
    assert cases.error_of_optimizers(case, dtype) == "0 ulp"


def test_a_wrong_kernel_is_said_to_be_wrong(monkeypatch):
    monkeypatch.setattr(Data, "update", lambda data: None)
    assert cases.error(CASES[0], "float32") == cases.WRONG


@each_case
def test_the_limit_moves_the_bytes_of_the_case_and_leaves_its_values(case):
    data = Data(case, 3001, "float32")
    before = [array.copy() for array in data.arrays]
    cases.traffic(data).seconds(2)  # twice: a sign that is turned is turned back
    for was, array in zip(before, data.arrays, strict=True):
        assert was.tobytes() == array.tobytes()
    arrays = sum(array.nbytes for array in [data.param, *data.states.values()] if array.ndim)
    assert cases.traffic_bytes(case, data.param.dtype) * 3001 == 2 * arrays + data.grad.nbytes


@pytest.mark.parametrize(("roots", "divisions"), [(0, 0), (2, 1), (1, 3), (0, 2), (-1, 1)])
def test_a_divider_that_was_not_compiled_is_refused(roots, divisions):
    with pytest.raises(ValueError, match="division"):
        _core.repeated_division(1024, 1024, False, roots, divisions)


def test_contenders_take_turns_and_slow_ones_are_timed_less_often():
    order: list[str] = []

    def contender(name, seconds):
        def timed(calls):
            order.append(name)
            return seconds * calls

        return Native(timed)

    timings = alternate({"fast": contender("fast", 1e-4), "slow": contender("slow", 1.0)}, seconds=0.1, rounds=9)
    assert len(timings["fast"].by_round) == 9
    assert len(timings["slow"].by_round) == FEWEST
    assert timings["fast"].median == pytest.approx(1e-4)
    measured = order[-(9 + FEWEST) :]
    every_fourth_round = [set(measured[k : k + 2]) for k in (0, 5, 10)]
    assert every_fourth_round == [{"fast", "slow"}] * FEWEST


def peer_of(change):
    """Return a peer that runs the reference, and then changes the parameter."""

    def make(data, threads):
        def step():
            data.update_plain()
            change(data.param)

        return step, lambda: data.param

    return peers.Peer("somebody", (), make)


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        (peer_of(lambda p: None), "0 ulp"),
        (peer_of(lambda p: np.multiply(p, 1 + 1e-3, out=p)), "wrong: "),
        (peer_of(lambda p: p.fill(np.nan)), "wrong: nan ulp"),
        (peer_of(lambda p: p.reshape(7)), "failed: ValueError"),
        (peers.Peer("nobody", ("no_such_module",), lambda data, threads: None), "missing: no_such_module"),
        (peers.Peer("other", (), lambda data, threads: None), "has no such rule"),
    ],
)
def test_a_peer_is_timed_only_if_it_is_right(peer, said):
    found, step = peers.verdict(peer, CASES[0], Data(CASES[0], 64, "float32"), threads=1)
    assert found.startswith(said)
    assert (step is not None) == (said == "0 ulp")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Rprop"])
@pytest.mark.parametrize("peer", [peer for peer in peers.PEERS if not peer.needs], ids=lambda peer: peer.name)
def test_numpy_peers_are_right_for_many_steps(name, peer, dtype):
    case = cases.by_name(name)
    data = Data(case.to_check(), 997, dtype)
    expected = data.copy()
    data.states = {key: state.copy() for key, state in data.states.items()}
    made = peer.make(data, 1)
    assert made is not None
    step, parameter = made
    rng = np.random.default_rng(1)
    for _ in range(20):
        data.grad[...] = expected.grad[...] = rng.integers(-1, 2, 997)  # signs that stay, flip and vanish
        before = expected.param.copy()
        step()
        expected.update_plain()
        assert peers.ulps(np.asarray(parameter()), expected.param, before) <= 20 * peers.ACCEPTED


def test_lists_of_the_peers_start_like_an_optimizer():
    for name in rows.MAIN:
        case = cases.by_name(name)
        for peer in models.PEERS_OF_LISTS:
            said, _ = models.verdict_of_list(peer, case, *cases.lists(case, [16], "float32"), 1)
            assert said.endswith((" ulp", "has no such rule", "is not installed")), (name, peer.name, said)


def test_the_command_writes_rows_a_table_and_says_where_it_loses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rows, "PEERS", [peer for peer in peers.PEERS if not peer.needs])
    monkeypatch.setattr(rows, "PEERS_OF_LISTS", [])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    stored = tmp_path / "rows.json"
    few = ["--rules", "RMSprop", "Rprop", "--sizes", "16", "1000", "--threads", "1", "--seconds", "0.05"]
    assert main(["bench", "--table", str(page), "--json", str(stored), *few]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{report.START}\n")
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    assert "| RMSprop | limit | " in text
    assert "| | **fusedstep**, the kernel alone | 0 ulp, " in text

    page.write_text(f"{report.SHORT_START}\n{report.END}")
    assert main(["bench", "--table", str(page), *few]) == 0
    text = page.read_text()
    assert "C++ function | 0 ulp, " in text
    assert "the kernel alone" not in text
    assert "As fast as ours, " in text or "Faster than ours: " in text or "No peer is as fast." in text

    found = [rows.Row(**row) for row in json.loads(stored.read_text())["rows"]]
    assert {row.error for row in found if row.is_ours} == {"0 ulp"}
    assert {row.bound_by for row in found if row.case == "Rprop" and not row.is_limit} == {"traffic"}
    slow = [replace(row, ns_per_element=1e9) if row.is_ours else row for row in found]
    lost = report.defeats(slow)
    assert any(
        line.startswith("NumPy out= is faster (") and line.endswith("RMSprop, 16 elements of float32, 1 thread")
        for line in lost
    )
    assert report.defeats([replace(row, ns_per_element=1e9) for row in found if not row.is_ours]) == []


def test_a_file_without_a_place_for_the_table_is_refused_before_minutes_are_spent(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="bench:start"):
        main(["bench", "--table", str(page)])


def test_the_plot_draws_every_rule(tmp_path):
    pytest.importorskip("matplotlib")
    setting = replace(rows.QUICK, sizes=(16, 1000), peers=False, models=(), whole_step=False, seconds=0.02)
    found = list(rows.measure(rows.groups(setting)))
    report.plot(found, rows.machine(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
