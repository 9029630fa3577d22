"""What the sources say about the rules, as numbers: the scenes of the gallery, computed by the fused kernels."""

from __future__ import annotations

import numpy as np
import pytest

from fusedstep.gallery import scenes
from fusedstep.gallery.surfaces import BEALE


@pytest.fixture(scope="module")
def minibatches() -> scenes.Minibatches:
    return scenes.minibatches()


@pytest.fixture(scope="module")
def saddle() -> scenes.Saddle:
    return scenes.saddle()


@pytest.fixture(scope="module")
def valley() -> scenes.Valley:
    return scenes.valley()


@pytest.fixture(scope="module")
def condition() -> scenes.Condition:
    return scenes.condition()


# Mini-batches: nine gradients of 0.1 and one of -0.9 cancel.


def test_rprop_runs_away_in_mini_batches(minibatches: scenes.Minibatches) -> None:
    assert sum(scenes.BATCH_GRADIENTS) == pytest.approx(0, abs=1e-15)
    assert minibatches.moved("Rprop") > 19
    assert minibatches.drift("Rprop") > 150


def test_rprop_runs_faster_and_faster(minibatches: scenes.Minibatches) -> None:
    moves = np.diff(minibatches.weights["Rprop"][10::10])
    # Ten mini-batches: eight times the sign stays, twice it flips.
    np.testing.assert_allclose(moves[1:] / moves[:-1], 1.2**8 * 0.5**2, rtol=1e-9)


@pytest.mark.parametrize(("name", "drift"), [("RMSprop", 0.7), ("RMSprop, alpha 0.99", 0.08)])
def test_rmsprop_stays_in_mini_batches(minibatches: scenes.Minibatches, name: str, drift: float) -> None:
    assert minibatches.moved(name) < 0.5
    assert minibatches.moved("Rprop") > 40 * minibatches.moved(name)
    assert minibatches.drift(name) < drift


# The saddle point.


def test_rmsprop_leaves_the_saddle_first(saddle: scenes.Saddle) -> None:
    steps = {name: saddle.left(name) for name in saddle.paths}
    assert steps["RMSprop"] == 4
    assert min(steps, key=steps.__getitem__) == "RMSprop"
    assert steps["Momentum"] == 117
    assert steps["Nesterov"] == 110
    assert steps["SGD"] == 582


def test_rmsprop_leaves_however_small_the_gradient(saddle: scenes.Saddle) -> None:
    assert saddle.offsets[0] / saddle.offsets[-1] == pytest.approx(1e8)
    assert set(saddle.steps_to_leave["RMSprop"]) <= {3, 4, 5}


@pytest.mark.parametrize(("name", "steps_a_decade"), [("SGD", 116), ("Momentum", 22)])
def test_others_linger_the_longer_the_smaller_the_gradient(
    saddle: scenes.Saddle, name: str, steps_a_decade: int
) -> None:
    more = np.diff(np.array(saddle.steps_to_leave[name]))
    assert more.min() >= steps_a_decade
    assert more.max() <= steps_a_decade + 1


def test_rprop_passes_rmsprop_farther_out(saddle: scenes.Saddle) -> None:
    # Without noise its steps may grow; what they do with noise, see above.
    assert saddle.left("Rprop") == 7
    assert saddle.left("Rprop", 1.0) == 17
    assert saddle.left("RMSprop", 1.0) == 72


# The long valley behind a steep wall.


def test_first_gradient_is_huge() -> None:
    assert np.linalg.norm(BEALE.gradient(np.array(scenes.VALLEY_START))) > 600
    assert np.linalg.norm(BEALE.gradient(np.array([3.7, 0.632]))) < 0.1


def test_momentum_overshoots(valley: scenes.Valley) -> None:
    assert valley.overshoot("Momentum") > 1.6
    assert valley.detour("Momentum") > 4
    assert valley.arrived("Momentum") == 474


def test_rmsprop_goes_nearly_straight(valley: scenes.Valley) -> None:
    assert valley.overshoot("RMSprop") < 0.25
    assert valley.detour("RMSprop") < 1.11
    assert valley.arrived("RMSprop") == 270


def test_adagrad_jumps_and_slows_down(valley: scenes.Valley) -> None:
    lengths = valley.step_lengths("Adagrad")
    assert lengths[0] == pytest.approx(0.5 * np.sqrt(2))  # lr along x and along y
    assert lengths[1] < 0.21 * lengths[0]
    assert lengths[9] < 0.08 * lengths[0]
    assert lengths[99] < 0.004 * lengths[0]
    assert valley.arrived("Adagrad") == 1771


def test_rmsprop_does_not_slow_down(valley: scenes.Valley) -> None:
    lengths = valley.step_lengths("RMSprop")
    assert lengths[99] > 0.25 * lengths[0]
    assert lengths[-1] > 0.25 * lengths[0]


# High condition number.


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop"])
def test_division_evens_out_the_directions(condition: scenes.Condition, name: str) -> None:
    assert condition.ratio(name) == pytest.approx(condition.number, rel=0.02)
    assert condition.steps_to(name, 0) == condition.steps_to(name, 1)


def test_adagrad_speeds_the_flat_direction_and_slows_the_steep_one(condition: scenes.Condition) -> None:
    assert (condition.steps_to("SGD", 0), condition.steps_to("SGD", 1)) == (29, 1576)
    assert (condition.steps_to("Adagrad", 0), condition.steps_to("Adagrad", 1)) == (82, 82)


def test_adagrads_step_decays_and_rmsprops_does_not(condition: scenes.Condition) -> None:
    # With noise of constant size Adagrad's goes as 1 / sqrt(time): a hundred times later, a tenth.
    assert condition.kept("Adagrad") == pytest.approx(0.1, rel=0.02)
    assert condition.kept("RMSprop") == pytest.approx(1, rel=0.02)


# Beyond the sources' pictures: Rprop's variants (Igel & Hüsken 2000) and real data.


def test_improved_variants_need_fewer_steps() -> None:
    steps = {name: variant.steps_to(1e-4) or 1000 for name, variant in scenes.variants().items()}
    assert max(steps["irprop-"], steps["irprop+"]) < 100
    assert 100 < min(steps["rprop-"], steps["irprop-move"]) < 200
    assert steps["rprop+"] > 200


def test_rprop_fails_on_mini_batches_of_digits() -> None:
    pytest.importorskip("sklearn")
    trainings = {(t.rule, t.lr, t.batch): t for t in scenes.digits(epochs=8)}
    guessing = np.log(10)
    assert trainings["Rprop", 1e-3, 32].losses[-1] > guessing
    for key in (("Rprop", 1e-2, None), ("Adagrad", 1e-1, 32), ("RMSprop", 1e-3, 32)):
        assert trainings[key].losses[-1] < 0.1 * guessing
