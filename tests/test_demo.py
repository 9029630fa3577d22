"""``python -m fusedstep``: the demo, the self-check and the facts."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core, reference
from fusedstep import _demo as demo
from fusedstep._cli import COMMANDS, main, make_parser
from fusedstep._verification import _selfcheck as selfcheck

Patch = pytest.MonkeyPatch
Said = pytest.CaptureFixture[str]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusedstep", *arguments]
    quiet = os.environ | {"SKBUILD_EDITABLE_VERBOSE": "0"}  # an editable install prints its build
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=quiet, **options)


def other_than_progress(said: str) -> list[str]:
    return [line for line in said.splitlines() if not re.fullmatch(r"\d+%, \d+ s [\w ]+", line)]


@pytest.fixture(scope="module")
def digits() -> demo.Digits:
    pytest.importorskip("sklearn")
    return demo.load_digits()


def nudged(update: Any) -> Any:
    """Return a wrong reference, whose parameter is one unit in the last place off in one element."""

    @functools.wraps(update)
    def wrong(param: np.ndarray, *arguments: Any, **options: Any) -> None:
        update(param, *arguments, **options)
        if param.size:
            index = (0,) * param.ndim
            param[index] = np.nextafter(param[index], param.dtype.type(np.inf))

    return wrong


def test_demo_exits_1_where_weights_differ(digits: demo.Digits, monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    compare = demo.compare
    monkeypatch.setattr(demo, "compare", lambda *a, **k: compare(*a, **k, epochs=1, hidden=8))
    options = Namespace(out=tmp_path, seed=0)
    assert demo.run(options) == 0
    monkeypatch.setattr(reference, "rprop_", nudged(reference.rprop_))
    assert demo.run(options) == 1


def test_demo_does_without_matplotlib(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = demo.describe_picture([], tmp_path / "picture.png")
    assert said == "no picture: matplotlib is not installed (pip install matplotlib)"
    assert list(tmp_path.iterdir()) == []


def test_demo_names_the_packages_that_it_needs(monkeypatch: Patch, capsys: Said, tmp_path: Path) -> None:
    for module in ("sklearn", "sklearn.datasets", "sklearn.model_selection"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "demo needs scikit-learn: pip install matplotlib scikit-learn\n"


def test_demo_looks_at_its_output_first(monkeypatch: Patch, capsys: Said, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "load_digits", lambda: pytest.fail("it trains"))
    (tmp_path / "file").touch()
    (tmp_path / "taken" / demo.PICTURE).mkdir(parents=True)
    for place in ("file", "taken"):
        assert main(["demo", "--out", str(tmp_path / place)]) == 2
        assert f"demo: cannot write {tmp_path / place / demo.PICTURE}: " in capsys.readouterr().err


def test_demo_from_the_command_line(monkeypatch: Patch, tmp_path: Path) -> None:
    """Also in a terminal with ASCII only. All weights are equal, and there is a picture."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run("demo", "--out", str(tmp_path / "new \u00b5"), cwd=tmp_path)
    assert (done.returncode, other_than_progress(done.stderr)) == (0, [])
    assert (tmp_path / "new \u00b5" / demo.PICTURE).read_bytes().startswith(b"\x89PNG")
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.endswith("yes")}
    assert set(rows) == {"Rprop", "Adagrad", "RMSprop"}
    for row in rows.values():
        test_accuracy = float(row.split()[2].rstrip("%"))
        assert test_accuracy >= 95.0


def test_verify_finds_every_bit_equal() -> None:
    done = run("verify", "--quick")
    assert (done.returncode, other_than_progress(done.stderr)) == (0, [])
    assert done.stdout.rstrip().endswith("equal bit for bit")
    for isa, rule in itertools.product(fs.available_isas(), _core.rules()):
        table = done.stdout.split(f"\n{isa} ", 1)[1].split("\n\n")[0]
        assert f"  {rule} " in table


def test_verify_exits_1_and_names_where(monkeypatch: Patch, capsys: Said) -> None:
    monkeypatch.setattr(reference, "rprop_", nudged(reference.rprop_))
    every = list(selfcheck.cases(quick=True))
    chosen = [case for case in every if case.schema.rule == "adagrad" or case.options == {"variant": "irprop-"}]
    monkeypatch.setattr(selfcheck, "cases", lambda quick: chosen)
    assert main(["verify", "--quick"]) == 1
    said = capsys.readouterr().out
    assert "DIFFER" in said
    assert (
        "baseline, threads: 1, float32, rprop(variant='irprop-'): parameter 'length 1, offset by one', element (1,): "
        in said
    )
    assert "adagrad(" not in said


def test_verify_sees_a_write_outside_a_parameter() -> None:
    case = next(selfcheck.cases())
    inputs = selfcheck.Inputs("float32")
    found, expected = selfcheck.run_fused(case, inputs), selfcheck.run_reference(case, inputs)
    assert selfcheck.compare(found, expected) == (0, [])
    again = selfcheck.run_fused(case, inputs)
    again.arrays["parameter 'a block'"][0, 0] += 1
    differing, where = selfcheck.compare(again, expected)
    assert differing == 1
    assert where[0].startswith("parameter 'a block', element (0, 0): ")


def test_verify_knows_when_the_loss_is_worse() -> None:
    """Also where it is maximised, which only the long check combines with the variant that looks at the loss."""
    inputs = selfcheck.Inputs("float32")
    combined = {"variant": "irprop+", "maximize": True}
    [case] = [each for each in selfcheck.cases() if each.options == combined and not each.step_options]
    assert selfcheck.compare(selfcheck.run_fused(case, inputs), selfcheck.run_reference(case, inputs)) == (0, [])


def is_refused(rule: str, flag: str) -> bool:
    """Whether the rule refuses the flag together with weight decay."""
    try:
        _core.check_hyperparameters(rule, {flag: True, "weight_decay": 0.1})
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("quick", [False, True])
def test_verify_tries_every_option(quick: bool) -> None:
    """Each flag is off and on, each choice is made, and each number that is 0 by default is also another, with every
    state."""
    tried: dict[str, list[dict[str, Any]]] = {rule: [] for rule in _core.rules()}
    for case in selfcheck.cases(quick):
        tried[case.schema.rule].append(case.options)
        assert str(case).startswith(f"{case.schema.rule}(")
    for rule, about in _core.rules().items():
        values = [{**selfcheck.SCHEMAS[rule].options, **options} for options in tried[rule]]
        used = [frozenset(_core.used_states(rule, options)) for options in values]
        renamed = {state["renamed"] for state in about["states"].values() if state["renamed"]}
        assert frozenset().union(*used) == {*about["states"], *renamed}
        for name, field in about["fields"].items():
            if field["purpose"] != "option":
                continue
            found = {repr(options[name]) for options in values}
            if field["kind"] == "flag":
                assert found == {"True", "False"} or is_refused(rule, name), name
            elif field["kind"] == "choice":
                assert found == {*map(repr, field["choices"])}, name
            elif field["default"] == 0.0:
                assert len(found) == 2, name
    if not quick:  # Nesterov's rule in both forms, centred and corrected, which need other options
        assert any(
            options.get("nesterov") and options.get("centered") and options.get("momentum_form") == "tf"
            for options in tried["rmsprop"]
        )


def test_info_shows_the_configuration() -> None:
    done = run("info")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["version", fs.__version__]
    assert ", ".join(fs.available_isas()) in done.stdout
    done = run("info", "--json")
    assert json.loads(done.stdout) == {**fs.show_config(), "threads": json.loads(done.stdout)["threads"]}
    assert run("--version").stdout == f"{fs.__version__}\n"


@pytest.mark.parametrize("name", ["rmsprop", "RMSprop", "RMSPROP", "rmsprop_"])
def test_names_of_rules_are_case_blind(name: str, capsys: Said) -> None:
    assert make_parser().parse_args(["verify", "--rules", name]).rules == ["rmsprop"]
    with pytest.raises(SystemExit):
        main(["bench", "--rules", "RMSporp"])
    assert "got 'RMSporp' (did you mean 'rmsprop'?)" in capsys.readouterr().err


def test_verify_checks_only_the_rules_that_are_named(capsys: Said) -> None:
    assert main(["verify", "--quick", "--rules", "AdaGrad"]) == 0
    said = capsys.readouterr().out
    assert "  adagrad " in said
    assert "  rprop " not in said


def test_a_closed_pipe_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    quiet = os.environ | {"SKBUILD_EDITABLE_VERBOSE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "fusedstep", "info"], stdout=write, stderr=subprocess.PIPE, check=False, env=quiet
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_is_silent(monkeypatch: Patch, capsys: Said) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(selfcheck, "check", interrupted)
    assert main(["verify", "--quick"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_that_it_understands(command: str, capsys: Said) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    _, _, example = said.partition("Example: python -m fusedstep ")
    assert make_parser().parse_args(example.split()).command == command


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_bad_commands_list_the_good_ones(arguments: list[str], capsys: Said) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in COMMANDS)
