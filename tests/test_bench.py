"""The benchmark as an instrument: it checks what it times, names what it does not time, and writes what it found."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusedstep import _bench, _core
from fusedstep._bench import Case, repeated

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `bench`, which is not installed

from bench import cases, history, narrow, peers, report, rows, sparse
from bench.__main__ import main
from bench.cases import CASES, LAYOUTS, RIGHT, WRONG, Arrays

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def small_bench(monkeypatch, *arguments, sizes=(16, 64)):
    """Run the installed command on few elements; return its exit code."""
    monkeypatch.setattr(_bench, "QUICK", {("float32", 1): sizes, ("float64", 2): (16,)})
    parser = argparse.ArgumentParser()
    _bench.add_arguments(parser)
    return _bench.run(parser.parse_args(["--quick", *map(str, arguments)]))


def test_the_installed_command_times_every_rule_and_concludes_in_five_lines(tmp_path, monkeypatch, capsys):
    stored = tmp_path / "rows.json"
    assert small_bench(monkeypatch, "--json", stored) == 0
    found = json.loads(stored.read_text())
    assert found["machine"]["processor"]
    timed = {(row["rule"].lower(), row["contender"]) for row in found["rows"]}
    for rule in _core.rules():
        name = rule.replace("_", "")
        assert {(name, way) for way in ("streaming", "kernel", "function", "optimizer", "NumPy")} <= timed
    assert all(row["ns"] > 0 and row["share"] > 0 for row in found["rows"])
    assert {(row["dtype"], row["threads"], row["elements"]) for row in found["rows"]} == {
        ("float32", 1, 16), ("float32", 1, 64), ("float64", 2, 16)
    }  # fmt: skip
    text = capsys.readouterr().out
    assert "float64, 2 threads: ns per element" in text
    *_, before, exact, share, numpy, call, slower = text.splitlines()
    assert before == ""
    assert exact == "Every result had the bits of fs.reference."
    assert share.startswith("64 elements: the kernels reach ")
    assert numpy.startswith("64 elements: NumPy ")
    assert call.startswith("16 elements: a call of the function adds ")
    assert slower.startswith("NumPy is faster than the function: ")


def test_the_installed_command_says_what_is_wrong_and_does_not_time_it(tmp_path, monkeypatch, capsys):
    stored = tmp_path / "rows.json"
    monkeypatch.setitem(_bench.OURS, "function", lambda data: repeated(lambda: None))
    rprop = _core.rules()["rprop"]
    monkeypatch.setattr(_core, "rules", lambda: {"rprop": rprop})
    assert small_bench(monkeypatch, "--json", stored, sizes=(16,)) == 1
    assert "WRONG, and not timed: " in capsys.readouterr().out
    assert "function" not in {row["contender"] for row in json.loads(stored.read_text())["rows"]}


def test_the_installed_command_looks_at_its_output_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_bench, "measure", lambda *arguments: pytest.fail("it measured"))
    assert small_bench(monkeypatch, "--json", tmp_path / "missing" / "rows.json") == 2
    assert small_bench(monkeypatch, "--json", tmp_path) == 2
    assert capsys.readouterr().err.count("bench: cannot write ") == 2


@pytest.mark.parametrize(
    ("case", "roots_and_divisions", "bytes_per_element"),
    [
        (Case("rmsprop"), (1, 1), 20),
        (Case("rmsprop", {"centered": True, "momentum": 0.9}), (1, 1), 36),
        (Case("rmsprop", {"bias_correction": True}), (1, 2), 20),
        (Case("proximal_adagrad"), (1, 2), 20),
        (Case("adagrad_norm"), (0, 1), 16),
        (Case("rprop"), (0, 0), 22),
    ],
)
def test_what_a_rule_asks_of_the_machine_is_derived(case, roots_and_divisions, bytes_per_element):
    assert case.roots_and_divisions == roots_and_divisions
    assert case.bytes_per_element(np.dtype("float32")) == bytes_per_element


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_timed_gives_the_bits_of_the_reference(case, dtype):
    for layout in LAYOUTS:
        assert cases.error(case, dtype, layout) == RIGHT, layout
    assert cases.error_of_optimizers(case, dtype) == RIGHT
    for make in (_bench.OURS | _bench.NUMPY).values():
        assert _bench.is_right(make, case, dtype)


def test_a_wrong_kernel_is_said_to_be_wrong(monkeypatch):
    monkeypatch.setattr(Arrays, "call", lambda data: None)
    assert cases.error(CASES[0], "float32") == WRONG


@each_case
def test_the_streaming_rate_leaves_the_values(case):
    data = Arrays(case, 3001, "float32")
    before = [array.copy() for array in data.arrays]
    _bench.streaming(data)(2)  # twice, so that a flipped sign is flipped back
    for was, array in zip(before, data.arrays, strict=True):
        assert was.tobytes() == array.tobytes()


def peer_of(change):
    """Return a peer that runs the reference, and then changes the parameter."""

    def make(data, threads):
        def step():
            data.reference()
            change(data.param)

        return repeated(step), lambda: data.param

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
    found, contender = peers.verdict(peer, CASES[0], Arrays(CASES[0], 64, "float32"), threads=1)
    assert found.startswith(said)
    assert (contender is not None) == (said == "0 ulp")


def test_the_command_writes_rows_a_table_and_says_where_it_loses(tmp_path, monkeypatch):
    from bench.__main__ import END, SHORT_START, START

    monkeypatch.setattr(rows, "PEERS", [peer for peer in peers.PEERS if not peer.needs])
    monkeypatch.setattr(rows, "PEERS_OF_LISTS", [])
    page, short, stored = tmp_path / "page.md", tmp_path / "short.md", tmp_path / "rows.json"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    short.write_text(f"{SHORT_START}\n{END}")
    few = ["--rules", "RMSprop", "Rprop", "--sizes", "16", "1000", "--threads", "1", "--seconds", "0.05"]
    assert main(["--table", str(page), str(short), "--json", str(stored), *few]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "## RMSprop, 1 thread\n\n| way | ulp | 16 | 1,000 |" in text
    assert "| **fusedstep**, the kernel only | 0 | " in text
    text = short.read_text()
    assert [line.split(" | ")[0] for line in text.splitlines() if "| **" in line or "| NumPy" in line] == [
        "| **fusedstep**", "| NumPy, `out=` everywhere", "| NumPy"
    ]  # fmt: skip
    assert "As fast as ours, " in text or "Faster than ours: " in text or "No peer is as fast." in text

    found = [rows.Row(**row) for row in json.loads(stored.read_text())["rows"]]
    assert {row.error for row in found if row.is_ours} == {RIGHT}
    assert {row.bound_by for row in found if row.case == "Rprop" and not row.is_rate} == {"streaming"}
    slow = [replace(row, ns_per_element=1e9) if row.is_ours else row for row in found]
    lost = report.defeats(slow)
    assert any(
        line.startswith("NumPy out= is faster (") and line.endswith("RMSprop, 16 elements of float32, 1 thread")
        for line in lost
    )
    assert report.defeats([replace(row, ns_per_element=1e9) for row in found if not row.is_ours]) == []


@pytest.mark.parametrize("option", ["--table", "--json", "--plot", "--history"])
def test_outputs_are_looked_at_before_minutes_are_spent(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rows, "measure", lambda *arguments: pytest.fail("it measured"))
    (tmp_path / "page.md").write_text("no place for a table\n")
    assert main([option, str(tmp_path / "page.md" if option == "--table" else tmp_path / "missing" / "file.svg")]) == 2
    assert ("bench:start" if option == "--table" else "missing/file.svg") in capsys.readouterr().err


def test_history_tells_what_changed_between_the_last_two_runs(tmp_path):
    row = rows.Row("RMSprop", "", "way", 16, "float32", 1, "avx2", RIGHT, 1.0, 0.9, 1.1, 9, 20.0, 1.0, "streaming")
    runs = tmp_path / "runs.jsonl"
    facts = {"processor": "some", "compiler": "GNU", "versions": {"numpy": "2", "numba": "missing"}}
    noisy = replace(row, way="noisy", ns_per_element=1.3, upper=1.5)
    history.append(runs, [row, noisy, replace(row, way="other", ns_per_element=None)], facts)
    assert list(history.compare(runs)) == [f"{runs}: one run, nothing to compare it with"]
    slower = replace(row, ns_per_element=2.0, lower=1.9, upper=2.1)
    history.append(runs, [slower, replace(noisy, ns_per_element=1.4, lower=1.2)], facts)
    *_, change, summary = history.compare(runs)
    assert change == "2 times as long: RMSprop  way 16 float32 1 avx2"
    assert summary == "2 rows compared, 1 changed by more than 5%"
    history.append(runs, [row], facts | {"processor": "another"})
    assert list(history.compare(runs))[-1] == "not compared: another processor"


def test_the_plot_draws_every_rule(tmp_path):
    pytest.importorskip("matplotlib")
    from bench import plot

    setting = replace(rows.QUICK, sizes=(16, 1000), peers=False, models=(), whole_step=False, seconds=0.02)
    found = list(rows.measure(rows.groups(setting)))
    plot.plot(found, rows.machine(), tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f">{name}<" in drawn for name in rows.MAIN)


@pytest.mark.slow
def test_narrow_storage_is_timed_beside_float32(monkeypatch, capsys):
    monkeypatch.setattr(narrow, "SIZES", (64, 128))
    monkeypatch.setattr(sys, "argv", ["narrow", "--seconds", "0.01"])
    narrow.main()
    text = capsys.readouterr().out
    assert "other bits" not in text
    _, *tables = text.split("\n\n")
    assert {table.split(",")[0] for table in tables} == {"RMSprop", "Adagrad", "Rprop"}
    for table in tables:
        found = {line[:36].strip(): [float(x) for x in line[36:].split()] for line in table.splitlines()[2:]}
        assert narrow.STORAGES.keys() <= found.keys()
        assert found["float32"][1] == 1
        assert all(nanoseconds > 0 for nanoseconds, _, _ in found.values())


@pytest.mark.slow
def test_rows_are_timed_beside_a_dense_step(monkeypatch):
    monkeypatch.setattr(
        sparse, "JOBS", [replace(job, shape=(1_000, *job.shape[1:]), entries=64) for job in sparse.JOBS]
    )
    monkeypatch.setattr(sparse, "COLUMNS", 100_000)
    monkeypatch.delitem(sparse.PEERS, "torch, sparse")  # torch warns of its own call
    *jobs, logistic = "\n".join(sparse.report(0.01)).strip().split("\n\n")
    assert len(jobs) == len(sparse.JOBS)
    for job in jobs:
        found = {line[:22].strip(): float(line[22:].split()[0].replace(",", "")) for line in job.splitlines()[1:]}
        assert found.keys() >= {"fusedstep", "fusedstep, dense"}
        assert min(found.values()) >= 0
    shares = [float(line.split("%")[0]) for line in logistic.splitlines()[1:]]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 2 < 90 < shares[-1]


def test_both_ways_of_a_logistic_regression_are_one():
    weights = {}
    for way in ("rows", "dense"):
        weights[way] = np.zeros(5_000, np.float32)
        _, ways, [batch, *_] = sparse.logistic_regression(weights[way], documents=20)
        ways[way](*batch)
    assert np.count_nonzero(weights["rows"]) > 1_000
    np.testing.assert_allclose(weights["rows"], weights["dense"], rtol=1e-4, atol=1e-6)
