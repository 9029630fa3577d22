"""
Rounding in 16 bits
===================

A bfloat16 has 8 significant bits, so numbers near 1 are 1/128 or 1/256 apart. A sum of squares, or an average with
alpha near 1, changes by less than half of that in each step. Rounded to nearest, it never changes at all. Rounded
stochastically, up or down with the right probability, it is right in the mean.
"""

import matplotlib.pyplot as plt
import numpy as np

import fusedstep as fs

WAYS = {
    "float32": {},
    "bfloat16, stochastic": {"state_dtype": "bfloat16"},
    "bfloat16, to nearest": {"state_dtype": "bfloat16", "rounding": "nearest"},
}
ELEMENTS = 256

# %%
# Adagrad sums the squares of 20,000 Gaussian gradients. Its steps are divided by the root of that sum.


def roots_of_sums(steps):
    rng = np.random.default_rng(0)
    runs = [fs.Adagrad(np.zeros(ELEMENTS, np.float32), **options) for options in WAYS.values()]
    roots = np.empty((len(runs), steps))
    for step in range(steps):
        grad = rng.standard_normal(ELEMENTS).astype(np.float32)
        for root, opt in zip(roots, runs, strict=True):
            opt.step(grad)
            root[step] = np.sqrt(opt.state["0"]["square_sum"].astype(float)).mean()
    return dict(zip(WAYS, roots, strict=True))


roots = roots_of_sums(20_000)
left = {name: root[-1] / roots["float32"][-1] for name, root in roots.items()}
print(left)
assert abs(left["bfloat16, stochastic"] - 1) < 0.03, "it should be right in the mean"
assert left["bfloat16, to nearest"] < 0.5, "it should stand still"

# %%
# RMSprop with alpha = 0.999. Gradients are 1 for 5,000 steps, then 1/2, so the average should fall from 1 to 1/4.


def averages(steps):
    magnitudes = np.where(np.arange(steps) < steps // 2, 1.0, 0.5).astype(np.float32)
    found = {}
    for name, options in WAYS.items():
        opt = fs.RMSprop(np.zeros(ELEMENTS, np.float32), alpha=0.999, initial_square_avg=1.0, **options)
        found[name] = np.empty((steps, ELEMENTS), np.float32)
        for average, magnitude in zip(found[name], magnitudes, strict=True):
            opt.step(np.full(ELEMENTS, magnitude))
            average[:] = opt.state["0"]["square_avg"]
    return found


averaged = averages(10_000)
end = {name: average[-1].mean() for name, average in averaged.items()}
print(end)
assert abs(end["bfloat16, stochastic"] - end["float32"]) < 0.01, "it should follow"
assert end["bfloat16, to nearest"] > 0.9, "it should stand still"

# %%
# Thick lines are means over 256 elements. The thin one on the right is a single element: the price is noise.

COLORS = {"float32": "black", "bfloat16, stochastic": "#009E73", "bfloat16, to nearest": "#D55E00"}
fig, (sums, decay) = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
for name, root in roots.items():
    style = {"color": COLORS[name], "linewidth": 3, "linestyle": (0, (3, 2)) if name == "float32" else "-"}
    sums.semilogx(1 + np.arange(len(root)), root / roots["float32"], label=name, zorder=name == "float32", **style)
    decay.plot(averaged[name].mean(axis=1), zorder=2 + (name == "float32"), **style)
decay.plot(averaged["bfloat16, stochastic"][:, 0], color=COLORS["bfloat16, stochastic"], linewidth=0.7)
sums.set(title="Adagrad: root of the sum,\nrelative to float32", xlabel="steps", ylim=(0, 1.1))
decay.set(title="RMSprop: average of squares,\nα = 0.999, gradients 1, then ½", xlabel="steps", ylim=(0, 1.1))
fig.legend(loc="outside lower center", ncols=3)
plt.show()
