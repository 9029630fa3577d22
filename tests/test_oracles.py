"""Numbers that others published, and tables worked out by hand: none of them made by this package.

Only numbers are quoted, from the test or page that is named beside them. A published number with n decimals is right to
half a unit of the last one, and that is the tolerance here, unless said otherwise. Runs are in float64, unless said
otherwise, where what we add is far below: the formula is the question, not the precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fusedstep as fs

Array = np.ndarray[Any, Any]

SLACK = 1e-12  # our own rounding, beside half a unit of a published decimal


def close(found: Any, published: Any, decimals: int) -> None:
    np.testing.assert_allclose(found, published, rtol=0, atol=0.5 * 10.0**-decimals + SLACK)


# ------------------------------------------------------------------------------------------------------------ Keras
# keras-team/keras (Keras 3), keras/src/optimizers/rmsprop_test.py and adagrad_test.py.

KERAS_GRADS = np.array([1.0, 6.0, 7.0, 2.0])
KERAS_GOLDEN_GRADS = np.arange(0.1, 1.1, 0.1)


def test_keras_rmsprop_single_step() -> None:
    """rmsprop_test.py, test_single_step: four decimals."""
    p = np.array([1.0, 2.0, 3.0, 4.0])
    fs.RMSprop.like("keras", p, 0.5).step(KERAS_GRADS)
    close(p, [-0.5811, 0.4189, 1.4189, 2.4189], 4)


def test_keras_rmsprop_documentation() -> None:
    """The example in the documentation of keras.optimizers.RMSprop, in float32: one step on x^2/2 from 10."""
    p = np.array([10.0], np.float32)
    fs.RMSprop.like("keras", p, 0.1).step(p.copy())
    np.testing.assert_allclose(p, 9.683772, rtol=0, atol=0.5e-6 + 0.5 * np.spacing(np.float32(9.683772)))


def test_keras_rmsprop_golden() -> None:
    """rmsprop_test.py, test_correctness_with_golden: centered, a small gradient first; four decimals."""
    golden = [0.9967, 0.9933, 0.9908, 0.9885, 0.9864]
    p = np.ones(10)
    opt = fs.RMSprop.like("keras", p, centered=True)
    opt.step(np.full(10, 0.01))
    for value in golden:
        close(p, value, 4)
        opt.step(KERAS_GOLDEN_GRADS)


@pytest.mark.parametrize("cls", [fs.RMSprop, fs.Adagrad])
def test_keras_weight_decay(cls: Any) -> None:
    """rmsprop_test.py and adagrad_test.py, test_weight_decay: a gradient of 0, so that decay alone acts.

    Published is 1.9760959, to be met to six decimals (1.5e-6, as numpy.testing.assert_almost_equal has it). Decoupled
    decay makes 2 (1 - 0.004) = 1.992 in one step, and all three optimizers there step on the same variable: three
    steps, 2 (1 - 0.004)^3.
    """
    p = np.array(2.0)
    for _ in range(3):
        cls.like("keras", p, 1.0, weight_decay=0.004).step(np.array(0.0))
    np.testing.assert_allclose(p, 1.9760959, rtol=0, atol=1.5e-6)
    assert p == pytest.approx(2 * (1 - 0.004) ** 3, rel=1e-15)


def test_keras_adagrad_single_step() -> None:
    """adagrad_test.py, test_single_step: four decimals."""
    p = np.array([1.0, 2.0, 3.0, 4.0])
    fs.Adagrad.like("keras", p, 0.5).step(KERAS_GRADS)
    close(p, [0.5233, 1.5007, 2.5005, 3.5061], 4)


def test_keras_adagrad_golden() -> None:
    """adagrad_test.py, test_correctness_with_golden: a small gradient first; four decimals."""
    golden = [
        [0.9963, 0.9963, 0.9963, 0.9963, 0.9963, 0.9963, 0.9963, 0.9963, 0.9963, 0.9963],
        [0.9604, 0.9278, 0.9003, 0.8784, 0.8615, 0.8487, 0.8388, 0.8313, 0.8255, 0.8209],
        [0.9251, 0.8629, 0.8137, 0.7768, 0.7497, 0.7298, 0.7151, 0.704, 0.6956, 0.6891],
        [0.8903, 0.8012, 0.7342, 0.6862, 0.6521, 0.6277, 0.6099, 0.5967, 0.5867, 0.579],
        [0.856, 0.7422, 0.6604, 0.6037, 0.5644, 0.5367, 0.5168, 0.5021, 0.491, 0.4825],
    ]
    p = np.ones(10)
    opt = fs.Adagrad.like("keras", p, 0.2, initial_accumulator_value=0.3, eps=1e-6)
    opt.step(np.full(10, 0.01))
    for row in golden:
        close(p, row, 4)
        opt.step(KERAS_GOLDEN_GRADS)


# ---------------------------------------------------------------------------------------------------- TensorFlow 1
# tensorflow/tensorflow (1.x), tensorflow/python/training/*_test.py. Its tests hold to 1e-6 in float32; ours are in
# float64, so closed forms hold to 1e-14 and published decimals to half a unit.


@pytest.mark.parametrize(
    ("lr", "alpha", "momentum", "eps", "centered"),
    [
        (0.5, 0.9, 0.0, 1e-3, True),
        (0.5, 0.9, 0.0, 1e-3, False),
        (0.1, 0.9, 0.0, 1e-3, True),
        (0.5, 0.95, 0.0, 1e-3, False),
        (0.5, 0.95, 0.0, 1e-5, True),
        (0.5, 0.95, 0.9, 1e-5, True),
    ],
)
def test_tensorflow_rmsprop_dense(lr: float, alpha: float, momentum: float, eps: float, centered: bool) -> None:
    """rmsprop_test.py, testDense: its options and values, four steps with the same gradient.

    With a constant gradient all has a closed form: ``v_t = a^t + (1 - a^t) g^2`` from 1, ``m_t = (1 - a^t) g``,
    ``u_t = lr g / sqrt(v_t - m_t^2 + eps)``, ``b_t = sum of mu^(t-k) u_k``, ``p_t = p_0 - sum of b_k``.
    """
    start = np.array([1.0, 2.0, 3.0, 4.0])
    g = np.array([0.1, 0.2, 0.01, 0.2])
    p = start.copy()
    opt = fs.RMSprop.like("tf1", p, lr, alpha=alpha, momentum=momentum, eps=eps, centered=centered)
    u = []
    for t in range(1, 5):
        opt.step(g)
        v = alpha**t + (1 - alpha**t) * g**2
        m = (1 - alpha**t) * g
        u.append(lr * g / np.sqrt(v + eps - (m**2 if centered else 0)))
        b = [sum(momentum ** (j - k) * u[k] for k in range(j + 1)) for j in range(t)]
        state = opt.state["0"]
        np.testing.assert_allclose(state["square_avg"], v, rtol=1e-14)
        if centered:
            np.testing.assert_allclose(state["grad_avg"], m, rtol=1e-14)
        if momentum:
            np.testing.assert_allclose(state["momentum_buffer"], b[-1], rtol=1e-14)
        np.testing.assert_allclose(p, start - sum(b), rtol=1e-14)


def test_tensorflow_rmsprop_without_momentum() -> None:
    """rmsprop_test.py, testWithoutMomentum: eps of 1 under the root, so that it can't be mistaken."""
    p = np.array([1.0, 2.0, 3.0, 4.0])
    g = np.array([0.1, 0.1, 0.01, 0.01])
    opt = fs.RMSprop.like("tf1", p, 2.0, alpha=0.9, eps=1.0)
    opt.step(g)
    np.testing.assert_allclose(opt.state["0"]["square_avg"], [0.901, 0.901, 0.90001, 0.90001], rtol=1e-14)
    first = [0.1 * 2.0 / math.sqrt(0.901 + 1.0), 0.01 * 2.0 / math.sqrt(0.90001 + 1.0)]
    np.testing.assert_allclose(p, [1 - first[0], 2 - first[0], 3 - first[1], 4 - first[1]], rtol=1e-14)
    opt.step(g)
    v = [0.901 * 0.9 + 0.001, 0.90001 * 0.9 + 1e-5]
    np.testing.assert_allclose(opt.state["0"]["square_avg"], np.repeat(v, 2), rtol=1e-14)
    both = [first[0] + 0.1 * 2.0 / math.sqrt(v[0] + 1.0), first[1] + 0.01 * 2.0 / math.sqrt(v[1] + 1.0)]
    np.testing.assert_allclose(p, [1 - both[0], 2 - both[0], 3 - both[1], 4 - both[1]], rtol=1e-14)


def test_tensorflow_rmsprop_with_momentum() -> None:
    """rmsprop_test.py, testWithMomentum: the buffer holds steps, lr included."""
    p = np.array([1.0, 2.0, 3.0, 4.0])
    g = np.array([0.1, 0.1, 0.01, 0.01])
    opt = fs.RMSprop.like("tf1", p, 2.0, alpha=0.9, momentum=0.5, eps=1e-5)
    opt.step(g)
    first = [0.1 * 2.0 / math.sqrt(0.901 + 1e-5), 0.01 * 2.0 / math.sqrt(0.90001 + 1e-5)]
    np.testing.assert_allclose(opt.state["0"]["momentum_buffer"], np.repeat(first, 2), rtol=1e-14)
    np.testing.assert_allclose(p, [1 - first[0], 2 - first[0], 3 - first[1], 4 - first[1]], rtol=1e-14)
    opt.step(g)
    second = [
        0.5 * first[0] + 0.1 * 2.0 / math.sqrt(0.901 * 0.9 + 0.001 + 1e-5),
        0.5 * first[1] + 0.01 * 2.0 / math.sqrt(0.90001 * 0.9 + 2e-5),
    ]
    np.testing.assert_allclose(opt.state["0"]["momentum_buffer"], np.repeat(second, 2), rtol=1e-14)
    both = [first[0] + second[0], first[1] + second[1]]
    np.testing.assert_allclose(p, [1 - both[0], 2 - both[0], 3 - both[1], 4 - both[1]], rtol=1e-14)


def test_tensorflow_adagrad_basic() -> None:
    """adagrad_test.py, testBasic: three steps.

    Sixteen digits are published, but they are float32 values printed in full: they hold to the roundings of three steps
    in float32, taken as 2 units of 2^-22, that of numbers from 2 to 4.
    """
    published = [-1.6026098728179932, -0.6026098728179932, 2.715679168701172, 3.715679168701172]
    for dtype in (np.float32, np.float64):
        p = np.array([1.0, 2.0, 3.0, 4.0], dtype)
        opt = fs.Adagrad.like("tf1", p, 3.0, initial_accumulator_value=0.1)
        for _ in range(3):
            opt.step(np.array([0.1, 0.1, 0.01, 0.01], dtype))
        np.testing.assert_allclose(p, published, rtol=0, atol=2 * 2.0**-22)
    # The closed form of the first, in full: 1 - 3 (0.1/sqrt(0.11) + 0.1/sqrt(0.12) + 0.1/sqrt(0.13)).
    assert p[0] == pytest.approx(1 - 0.3 * sum(1 / math.sqrt(s) for s in (0.11, 0.12, 0.13)), rel=1e-14)


def test_tensorflow_adagrad_stability() -> None:
    """adagrad_test.py, testSparseStability: tiny gradients from the default start of 0.1; eight decimals."""
    p = np.array([0.00872496, -0.106952, 0.110467, 0.226505, -0.0147257, -0.0105945])
    opt = fs.Adagrad.like("tf1", p, 1.0)
    opt.step(np.array([-5.91278e-05, 5.31673e-05, -2.5779e-06, 4.29153e-05, -8.4877e-05, -9.48906e-05]))
    np.testing.assert_allclose(opt.state["0"]["square_sum"], 0.1, rtol=0, atol=1e-6)
    close(p, [0.00891194, -0.10712013, 0.11047515, 0.22636929, -0.0144573, -0.01029443], 8)


PROXIMAL_GRADS = np.array([0.1, 0.2, 0.01, 0.02])


@pytest.mark.parametrize(
    ("start", "steps", "l1", "l2", "published", "atol"),
    [
        # testProximalAdagradwithoutRegularization
        ([0.0, 0.0, 0.0, 0.0], 3, 0.0, 0.0, [-2.60260963, -4.29698515, -0.28432083, -0.56694895], 0.0),
        # testProximalAdagradwithoutRegularization2
        ([1.0, 2.0, 4.0, 3.0], 3, 0.0, 0.0, [-1.60261, -2.296985, 3.715679, 2.433051], 1e-6),
        # testProximalAdagradWithL1
        ([1.0, 2.0, 4.0, 3.0], 10, 0.001, 0.0, [-6.663634, -9.190331, 2.959304, 1.029232], 1e-6),
        # testProximalAdagradWithL1_L2
        ([1.0, 2.0, 4.0, 3.0], 10, 0.001, 2.0, [-0.0495, -0.0995, -0.0045, -0.0095], 0.5e-4),
    ],
)
def test_tensorflow_proximal_adagrad(
    start: list[float], steps: int, l1: float, l2: float, published: list[float], atol: float
) -> None:
    """proximal_adagrad_test.py, with four to eight decimals of float32 arithmetic.

    After ten steps that is off by 8e-7 in the sixth decimal, so TensorFlow's own tolerance, 1e-6, stays.
    """
    p = np.array(start)
    opt = fs.ProximalAdagrad(p, 3.0, l1=l1, l2=l2, initial_accumulator_value=0.1)
    for _ in range(steps):
        opt.step(PROXIMAL_GRADS)
    np.testing.assert_allclose(p, published, rtol=0 if atol > 1e-6 else 1e-6, atol=atol)


def test_tensorflow_proximal_adagrad_minimizes() -> None:
    """proximal_adagrad_test.py, testMinimizeSparseResourceVariable: one step on (4x + 5y)^2 from (1, 2), lr 1."""
    p = np.array([1.0, 2.0])
    fs.ProximalAdagrad(p, 1.0, initial_accumulator_value=0.1).step(2 * 14.0 * np.array([4.0, 5.0]))
    np.testing.assert_allclose(p, [0.0, 1.0], rtol=0, atol=0.01)  # as published


def test_tensorflow_proximal_adagrad_is_adagrad_without_penalties() -> None:
    """proximal_adagrad_test.py, testEquivAdagradwithoutRegularization: five steps."""
    p, q = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])
    proximal = fs.ProximalAdagrad(p, 3.0, initial_accumulator_value=0.1)
    adagrad = fs.Adagrad.like("tf1", q, 3.0)
    for _ in range(5):
        proximal.step(PROXIMAL_GRADS)
        adagrad.step(PROXIMAL_GRADS)
        np.testing.assert_allclose(p, q, rtol=1e-14)


@pytest.mark.parametrize(
    ("start", "l1", "l2", "published"),
    [
        # testAdagradDAWithoutRegularizationBasic1 and -Basic2: where it starts makes no difference
        ([0.0, 0.0, 0.0, 0.0], 0.0, 0.0, [-0.904534, -1.603567, -0.094821, -0.189358]),
        ([1.0, 2.0, 4.0, 3.0], 0.0, 0.0, [-0.904534, -1.603567, -0.094821, -0.189358]),
        # testAdagradDAWithL1
        ([1.0, 2.0, 4.0, 3.0], 0.001, 0.0, [-0.895489, -1.59555, -0.085339, -0.17989]),
        # testAdagradDAWithL1_L2
        ([1.0, 2.0, 4.0, 3.0], 0.001, 2.0, [-0.046907, -0.093659, -0.004275, -0.009023]),
    ],
)
def test_tensorflow_adagrad_da(start: list[float], l1: float, l2: float, published: list[float]) -> None:
    """adagrad_da_test.py: one step; six decimals."""
    p = np.array(start)
    fs.AdagradDA(p, 3.0, l1=l1, l2=l2, initial_accumulator_value=0.1).step(PROXIMAL_GRADS)
    close(p, published, 6)


def test_tensorflow_adagrad_da_minimizes() -> None:
    """adagrad_da_test.py, testMinimizeSparseResourceVariable: one step on (4x + 5y)^2 from (1, 2), lr 1."""
    p = np.array([1.0, 2.0])
    fs.AdagradDA(p, 1.0, initial_accumulator_value=0.1).step(2 * 14.0 * np.array([4.0, 5.0]))
    np.testing.assert_allclose(p, [-1.0, -1.0], rtol=0.01)  # as published


@pytest.mark.parametrize("l2", [0.0, 0.5])
@pytest.mark.parametrize("l1", [0.0, 0.05, 0.15])
def test_adagrad_da_in_closed_form(l1: float, l2: float) -> None:
    """Ten steps with a constant gradient: ``G = t g``, ``s = k + t g^2``; an l1 above the average gradient gives 0."""
    g, k, lr = np.array([0.1, -0.2, 0.01]), 0.1, 3.0
    p = np.array([1.0, 2.0, 4.0])
    opt = fs.AdagradDA(p, lr, l1=l1, l2=l2, initial_accumulator_value=k)
    for t in range(1, 11):
        opt.step(g)
        expected = -np.sign(g) * lr * np.maximum(t * np.abs(g) - l1 * t, 0) / (l2 * t * lr + np.sqrt(k + t * g**2))
        np.testing.assert_allclose(p, expected, rtol=1e-13, atol=1e-15)


# --------------------------------------------------------------------------------------------- Lasagne and Torch7
# Lasagne/Lasagne, lasagne/tests/test_updates.py: ten steps on sum of (0.1, 0.2, 0.3) x^2 from 1. Its numbers were made
# by Torch7's optim, in double, and have 14 decimals.

SQUARE = np.array([0.1, 0.2, 0.3])
TORCH7_ADAGRAD = [0.55373120047759, 0.55373120041518, 0.55373120039438]
TORCH7_RMSPROP = [0.83205403985348, 0.83205322744821, 0.83205295664444]


def ten_steps(opt: Any, x: Array) -> Array:
    for _ in range(10):
        opt.step(2 * SQUARE * x)
    return x


def test_torch7_adagrad() -> None:
    """Torch7's optim.adagrad is PyTorch's: to 14 decimals, that is half a unit of 1e-14 and our rounding."""
    x = np.ones(3)
    np.testing.assert_allclose(ten_steps(fs.Adagrad.like("torch", x, 0.1), x), TORCH7_ADAGRAD, rtol=0, atol=1e-14)


def test_torch7_rmsprop() -> None:
    """Torch7's optim.rmsprop with eps 1e-6 outside the root, and the alpha of Lasagne: to 14 decimals."""
    x = np.ones(3)
    opt = fs.RMSprop.like("torch", x, 0.01, alpha=0.9, eps=1e-6)
    np.testing.assert_allclose(ten_steps(opt, x), TORCH7_RMSPROP, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("cls", "lr", "published"), [(fs.Adagrad, 0.1, TORCH7_ADAGRAD), (fs.RMSprop, 0.01, TORCH7_RMSPROP)]
)
def test_lasagne(cls: Any, lr: float, published: list[float]) -> None:
    """test_updates.py, test_updates: Lasagne's eps is inside, so it meets these to 1e-5 only, and says so."""
    x = np.ones(3)
    ten_steps(cls.like("lasagne", x, lr), x)
    np.testing.assert_allclose(x, published, rtol=1e-5, atol=1e-8)
    assert np.abs(x - published).max() > 1e-7  # the place of eps does show


# --------------------------------------------------------------------------------- Igel & Hüsken 2000, 2003, by hand
# One weight, eight steps; eta- = 1/2, eta+ = 2, limits 1 and 3, first step size 1, p = 8: every number is exact. D is
# the step size after the step, s the sign that is remembered after it.
#
#   step         1     2     3     4     5     6     7     8
#   g           +3    +1    +2    -1    +5    -2     0    -4
#   loss         9     8    8.5   9.5    7     6     6     5        it rises before 3 (no flip) and before 4 (a flip)
#
# The first three steps are the same for all:
#   1  nothing remembered:  D = 1               p = 8 - 1 = 7         s +
#   2  same sign:           D = 2               p = 7 - 2 = 5         s +
#   3  same sign:           D = min(4, 3) = 3   p = 5 - 3 = 2         s +
#
# rprop-        4  flip:    D = 1.5             p = 2 + 1.5 = 3.5     s -      moves all the same
#               5  flip:    D = max(.75, 1) = 1 p = 3.5 - 1 = 2.5     s +
#               6  flip:    D = max(.5, 1) = 1  p = 2.5 + 1 = 3.5     s -
#               7  g = 0:   D = 1               p = 3.5               s 0
#               8  s was 0: D = 1               p = 3.5 + 1 = 4.5     s -
#
# rprop+        4  flip:    D = 1.5             p = 2 + 3 = 5         s 0      takes the last move, 3, back
#               5  s was 0: D = 1.5             p = 5 - 1.5 = 3.5     s +
#               6  flip:    D = max(.75, 1) = 1 p = 3.5 + 1.5 = 5     s 0      takes the last move, 1.5, back
#               7  g = 0:   D = 1               p = 5                 s 0
#               8  s was 0: D = 1               p = 5 + 1 = 6         s -
#
# irprop-       4  flip:    D = 1.5             p = 2                 s 0      stays
#               5  s was 0: D = 1.5             p = 2 - 1.5 = 0.5     s +
#               6  flip:    D = max(.75, 1) = 1 p = 0.5               s 0      stays
#               7  g = 0:   D = 1               p = 0.5               s 0
#               8  s was 0: D = 1               p = 0.5 + 1 = 1.5     s -
#
# irprop-move   4  flip:    D = 1.5             p = 2 + 1.5 = 3.5     s 0      moves, and forgets
#               5  s was 0: D = 1.5             p = 3.5 - 1.5 = 2     s +
#               6  flip:    D = max(.75, 1) = 1 p = 2 + 1 = 3         s 0      moves, and forgets
#               7  g = 0:   D = 1               p = 3                 s 0
#               8  s was 0: D = 1               p = 3 + 1 = 4         s -
#
# irprop+       4  flip:    D = 1.5             p = 2 + 3 = 5         s 0      the loss rose: takes the last move back
#               5  s was 0: D = 1.5             p = 5 - 1.5 = 3.5     s +
#               6  flip:    D = max(.75, 1) = 1 p = 3.5               s 0      the loss fell: stays
#               7  g = 0:   D = 1               p = 3.5               s 0
#               8  s was 0: D = 1               p = 3.5 + 1 = 4.5     s -

BY_HAND_GRADS = (3.0, 1.0, 2.0, -1.0, 5.0, -2.0, 0.0, -4.0)
BY_HAND_LOSSES = (9.0, 8.0, 8.5, 9.5, 7.0, 6.0, 6.0, 5.0)
BY_HAND = {  # p, D and s after each step
    "rprop-": (
        (7.0, 5.0, 2.0, 3.5, 2.5, 3.5, 3.5, 4.5),
        (1.0, 2.0, 3.0, 1.5, 1.0, 1.0, 1.0, 1.0),
        (1, 1, 1, -1, 1, -1, 0, -1),
    ),
    "rprop+": (
        (7.0, 5.0, 2.0, 5.0, 3.5, 5.0, 5.0, 6.0),
        (1.0, 2.0, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0),
        (1, 1, 1, 0, 1, 0, 0, -1),
    ),
    "irprop-": (
        (7.0, 5.0, 2.0, 2.0, 0.5, 0.5, 0.5, 1.5),
        (1.0, 2.0, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0),
        (1, 1, 1, 0, 1, 0, 0, -1),
    ),
    "irprop-move": (
        (7.0, 5.0, 2.0, 3.5, 2.0, 3.0, 3.0, 4.0),
        (1.0, 2.0, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0),
        (1, 1, 1, 0, 1, 0, 0, -1),
    ),
    "irprop+": (
        (7.0, 5.0, 2.0, 5.0, 3.5, 3.5, 3.5, 4.5),
        (1.0, 2.0, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0),
        (1, 1, 1, 0, 1, 0, 0, -1),
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("variant", BY_HAND)
def test_rprop_variants_by_hand(variant: str, dtype: type[Any]) -> None:
    """The table; beside it its mirror image, and gradients so small that a product of two of them would be 0."""
    tiny = float(np.finfo(dtype).tiny)
    scale = np.array([1.0, -1.0, tiny, -tiny, 2.0**100], dtype)
    mirror = np.sign(scale)
    p = 8 * mirror
    opt = fs.Rprop(p, 1.0, etas=(0.5, 2.0), step_sizes=(1.0, 3.0), variant=variant)
    state = opt.state["0"]
    rows = zip(BY_HAND_GRADS, BY_HAND_LOSSES, *BY_HAND[variant], strict=True)
    for t, (g, loss, param, step_size, sign) in enumerate(rows, 1):
        opt.step(dtype(g) * scale, loss=loss)
        np.testing.assert_array_equal(p, param * mirror, err_msg=f"p after step {t}")
        np.testing.assert_array_equal(state["step_size"], step_size, err_msg=f"D after step {t}")
        np.testing.assert_array_equal(state["prev_sign"], sign * mirror, err_msg=f"s after step {t}")


def test_the_variants_by_hand_differ() -> None:
    assert len({table[0] for table in BY_HAND.values()}) == len(BY_HAND)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("default", "rprop-"),
        ("torch", "irprop-"),
        ("shark", "irprop+"),
        ("encog", "rprop+"),
        ("opencv", "irprop-move"),
        ("neuralnet", "rprop+"),
    ],
)
def test_rprop_dialects_follow_the_table_by_hand(name: str, variant: str) -> None:
    """The signs of the table in each dialect: which way it moves where the sign flipped is its formula."""
    p = np.array([8.0])
    opt = fs.Rprop.like(name, p, step_sizes=(0.0, 64.0))
    moves, sizes = [], []
    before = 8.0
    for g, loss in zip(BY_HAND_GRADS, BY_HAND_LOSSES, strict=True):
        opt.step(np.array([g]), loss=loss)
        moves.append(float(np.sign(p[0] - before)))
        sizes.append(float(opt.state["0"]["step_size"][0]))
        before = float(p[0])
    param, _, _ = BY_HAND[variant]
    assert moves == [float(np.sign(b - a)) for a, b in zip((8.0, *param), param, strict=False)]
    lr = fs.dialects()["rprop"][name]["defaults"]["lr"]
    growth = [1, 1.2, 1.44, 0.72] + ([0.36, 0.18, 0.18, 0.18] if variant == "rprop-" else [0.72, 0.36, 0.36, 0.36])
    np.testing.assert_allclose(sizes, lr * np.array(growth), rtol=1e-14)


# ------------------------------------------------------------------------------------- a gradient that never changes


CONSTANT = np.random.default_rng(0).uniform(0.1, 3, 400).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.99},
        {"eps_inside_sqrt": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "momentum_form": "tf"},
        {"momentum": 0.9, "nesterov": True},
        {"bias_correction": True},
        {"initial_square_avg": 1.0},
    ],
    ids=str,
)
def test_centered_stays_finite_with_a_constant_gradient(options: dict[str, Any]) -> None:
    """10,000 steps in float32. ``v - m^2`` goes to 0 and rounding makes it negative, if nothing keeps it from that."""
    g = np.concatenate([CONSTANT, -CONSTANT, 10.0 ** np.arange(-12.0, 13.0, dtype=np.float32)])
    p = np.zeros_like(g)
    opt = fs.RMSprop(p, 1e-4, centered=True, **options)
    largest = np.zeros_like(g)
    for _ in range(10_000):
        opt.step(g)
        largest = np.maximum(largest, np.abs(p))  # NaN stays NaN
    for array in (p, largest, *opt.state["0"].values()):
        assert np.isfinite(array).all()
    assert (np.sign(p) == -np.sign(g)).all()
    v, m = opt.state["0"]["square_avg"], opt.state["0"]["grad_avg"]
    np.testing.assert_allclose(m, g, rtol=2e-5)
    np.testing.assert_allclose(v, g.astype(np.float64) ** 2, rtol=2e-5, atol=2.0**-126)


def test_without_the_clamp_it_would_not_stay_finite() -> None:
    """The same formula in NumPy: the root would be one of a negative number within 140 steps, for some of the above."""
    v, m = np.zeros_like(CONSTANT), np.zeros_like(CONSTANT)
    alpha, rest = np.float32(0.9), np.float32(0.1)
    lowest = np.zeros_like(CONSTANT)
    for _ in range(140):
        v = alpha * v + rest * CONSTANT * CONSTANT
        m = alpha * m + rest * CONSTANT
        lowest = np.minimum(lowest, v - m * m)
    assert (lowest < 0).sum() > 10
