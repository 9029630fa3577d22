"""
Fitting a model
===============

``fusedstep.minimize`` fits models by Rprop. How many evaluations of the loss and its gradient does that take? Compare
SciPy's L-BFGS-B, and IRPropMin of PINTS, a library for fitting time series.
"""

import importlib.util

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

import fusedstep as fs

# %%
# Three functions that textbooks use, and two models whose parameters are fitted to data. Each returns its loss and
# its gradient.


def rosenbrock(x):
    valley = x[1] - x[0] ** 2
    return 100 * valley**2 + (1 - x[0]) ** 2, np.array([-400 * valley * x[0] - 2 * (1 - x[0]), 200 * valley])


def beale(point):
    x, y = point
    powers = np.array([y, y**2, y**3])
    r = np.array([1.5, 2.25, 2.625]) - x + x * powers
    return r @ r, np.array([2 * r @ (powers - 1), 2 * r @ (x * np.array([1, 2 * y, 3 * y**2]))])


TURN = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
HESSIAN = TURN @ np.diag(np.logspace(0, 3, 6)) @ TURN.T  # a condition number of 1,000, across the coordinates


def quadratic(x):
    return 0.5 * x @ HESSIAN @ x, HESSIAN @ x


# %%
# Logistic growth from 10 to the capacity ``k`` at the rate ``r``, with 3 % noise. The best ``k`` is a thousand times
# the best ``r``.

TIMES = np.linspace(0, 100, 40)
NOISE = np.random.default_rng(0).normal(0, 15, TIMES.size)


def growth(r, k):
    decay = (k / 10 - 1) * np.exp(-r * TIMES)
    return k / (1 + decay), decay


POPULATION = growth(0.1, 500)[0] + NOISE


def logistic(x):
    r, k = x
    found, decay = growth(r, k)
    error = found - POPULATION
    by_r = found**2 / k * TIMES * decay
    by_k = found / k - found**2 / k * np.exp(-r * TIMES) / 10
    return error @ error, 2 * np.array([error @ by_r, error @ by_k])


# %%
# Prey and predators: two differential equations with four parameters. The derivatives by the parameters are carried
# along by the same Runge-Kutta steps.

STEP, STEPS = 0.15, 40


def change(state, p):
    (x, y), along = state[:, 0], state[:, 1:]
    a, b, c, d = p
    rate = np.array([a * x - b * x * y, d * x * y - c * y])
    by_state = np.array([[a - b * y, -b * x], [d * y, d * x - c]])
    by_p = np.array([[x, -x * y, 0, 0], [0, 0, -y, x * y]])
    return np.column_stack([rate, by_state @ along + by_p])


def trajectory(p):
    state = np.zeros((2, 5))
    state[:, 0] = 2, 1
    states = []
    for _ in range(STEPS):
        k1 = change(state, p)
        k2 = change(state + STEP / 2 * k1, p)
        k3 = change(state + STEP / 2 * k2, p)
        k4 = change(state + STEP * k3, p)
        state = state + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(state)
    return np.array(states)


OBSERVED = trajectory([1.5, 1.0, 3.0, 1.0])[:, :, 0] + np.random.default_rng(1).normal(0, 0.1, (STEPS, 2))


def predators(p):
    with np.errstate(all="ignore"):  # far from the data the predators overflow
        states = trajectory(p)
        error = states[:, :, 0] - OBSERVED
        return (error**2).sum(), 2 * np.einsum("ti,tij->j", error, states[:, :, 1:])


PROBLEMS = {
    "Rosenbrock": (rosenbrock, [-1.2, 1.0], [(-5, 5)] * 2),
    "Rosenbrock, x ≤ 0.5": (rosenbrock, [-1.2, 1.0], [(-5, 0.5), (-5, 5)]),
    "Beale": (beale, [1.0, 1.0], [(-4.5, 4.5)] * 2),
    "quadratic": (quadratic, np.ones(6), [(-5, 5)] * 6),
    "logistic growth": (logistic, [0.05, 300.0], [(1e-3, 1), (20, 2000)]),
    "predators and prey": (predators, [1.0, 0.8, 2.0, 0.7], [(0.5, 3.2)] * 4),
}

for fun, x0, _ in PROBLEMS.values():  # the gradients are slopes
    for i, step in enumerate(1e-6 * np.diag(np.abs(x0))):
        slope = (fun(x0 + step)[0] - fun(x0 - step)[0]) / (2 * step[i])
        assert np.isclose(slope, fun(np.array(x0))[1][i], rtol=1e-4)

# %%
# Every method starts at the same point, within the same bounds, and records the best loss so far at each evaluation.
# Rprop's first step size is the default 0.01 in each, also in PINTS.


class Recorder:
    """A function that remembers its losses."""

    def __init__(self, fun):
        self.fun, self.losses = fun, []

    def __call__(self, x):
        loss, gradient = self.fun(x)
        self.losses.append(loss)
        return loss, gradient


def lbfgsb(fun, x0, bounds):
    minimize(fun, x0, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-9})


def rprop(variant):
    def run(fun, x0, bounds):
        fs.minimize(fun, x0, variant, bounds=bounds, xtol=1e-8, gtol=1e-9, ftol=1e-12, maxiter=3000)

    return run


def pints_irpropmin(fun, x0, bounds):
    import pints

    optimiser = pints.IRPropMin(x0, 0.01, pints.RectangularBoundaries(*np.transpose(bounds)))
    optimiser.set_min_step_size(1e-8)
    best, since = np.inf, 0
    while len(fun.losses) < 3000 and since < 50:
        [x] = optimiser.ask()
        optimiser.tell([fun(x)])
        since = 0 if optimiser.f_best() < best else since + 1
        best = optimiser.f_best()


METHODS = {"L-BFGS-B (SciPy)": lbfgsb, "irprop+": rprop("irprop+"), "irprop-": rprop("irprop-")}
if importlib.util.find_spec("pints"):
    METHODS["IRPropMin (PINTS)"] = pints_irpropmin

curves, needed = {}, {}
for problem, (fun, x0, bounds) in PROBLEMS.items():
    recorders = {}
    for name, method in METHODS.items():
        recorders[name] = Recorder(fun)
        method(recorders[name], np.array(x0), bounds)
    lowest = min(min(recorder.losses) for recorder in recorders.values())
    lowest = 0.0 if lowest < 1e-9 else lowest
    enough = 1e-6 * (fun(np.array(x0))[0] - lowest)
    for name, recorder in recorders.items():
        curve = np.minimum.accumulate(recorder.losses) - lowest
        curves[problem, name] = curve
        needed[problem, name] = int(np.argmax(curve <= enough)) + 1 if (curve <= enough).any() else None

# %%
# A quasi-Newton method learns how the loss bends, and needs 4 to 60 times fewer evaluations on all of these problems.
# If yours is smooth and L-BFGS-B gets there, use it. Rprop's variants and PINTS are close to each other, because they
# are the same rule.

print(f"{'evaluations to a millionth of the first loss':<46}" + "".join(f"{name:>19}" for name in METHODS))
for problem in PROBLEMS:
    print(f"{problem:<46}" + "".join(f"{needed[problem, name]!s:>19}" for name in METHODS))
    ours, theirs = needed[problem, "irprop-"], needed[problem, "L-BFGS-B (SciPy)"]
    assert None not in (ours, theirs), "both should get there"
    assert 4 < ours / theirs < 60, "L-BFGS-B should need far fewer evaluations"
    assert 0.8 < needed[problem, "irprop+"] / ours < 1.25, "the two variants should need about as many"
    if "IRPropMin (PINTS)" in METHODS:
        assert 0.7 < needed[problem, "IRPropMin (PINTS)"] / ours < 1.4, "PINTS should need about as many"

STYLES = {
    "L-BFGS-B (SciPy)": {"color": "black"},
    "irprop+": {"color": "#0072B2"},
    "irprop-": {"color": "#56B4E9", "linestyle": "--"},
    "IRPropMin (PINTS)": {"color": "#D55E00", "linestyle": ":"},
}
fig, axes = plt.subplots(2, 3, figsize=(9, 6), sharex=True, layout="constrained")
for ax, problem in zip(axes.flat, PROBLEMS, strict=True):
    for name in METHODS:
        curve = curves[problem, name] / curves[problem, name][0]
        ax.loglog(range(1, 1 + len(curve)), np.maximum(curve, 1e-16), linewidth=1.8, label=name, **STYLES[name])
    ax.axhline(1e-6, color="0.7", linewidth=0.8)
    ax.set(title=problem, xlim=(1, 3000), ylim=(1e-10, 2))
for ax in axes[-1]:
    ax.set(xlabel="evaluations")
for ax in axes[:, 0]:
    ax.set(ylabel="loss above the minimum")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %%
# What Rprop is good for is a function that is not so well behaved. Give the predators wider bounds. Now the first
# trial of L-BFGS-B is a corner of them, where the numbers overflow, and it gives up. Rprop begins with small steps
# and arrives.

fun, x0, _ = PROBLEMS["predators and prey"]
wide = [(0.1, 5)] * 4
quasi_newton = minimize(fun, x0, jac=True, method="L-BFGS-B", bounds=wide)
sign_based = fs.minimize(fun, x0, bounds=wide, target=0.6)
print(f"L-BFGS-B: {quasi_newton.nfev} evaluations, x = {quasi_newton.x.round(2)}, {quasi_newton.message}")
print(f"irprop+: {sign_based.nfev} evaluations, x = {sign_based.x.round(2)}, {sign_based.message}")
assert not quasi_newton.success, "L-BFGS-B should give up"
assert np.array_equal(quasi_newton.x, x0), "L-BFGS-B should not get anywhere"
assert np.allclose(sign_based.x, [1.5, 1, 3, 1], rtol=0.06), "Rprop should find the parameters"

# %%
# SciPy's ``minimize`` takes the rule as its ``method``, so that trying the other one is one word.

through_scipy = minimize(
    rosenbrock, [-1.2, 1.0], jac=True, method=fs.scipy_method("irprop+"), bounds=[(-5, 0.5), (-5, 5)]
)
assert through_scipy.success
assert np.allclose(through_scipy.x, [0.5, 0.25], atol=1e-3), "it should end at the bound"
plt.show()
