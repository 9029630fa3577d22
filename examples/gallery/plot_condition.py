"""
A high condition number
=======================

The function (1,000 x² + y²) / 2 is 1,000 times as steep along x as along y. Gradient descent (SGD) is fast along x and
slow along y. Adagrad and RMSprop divide each gradient by its own magnitude and are as fast along y as along x. Over a
long run on noisy gradients Adagrad's steps shrink and RMSprop's do not.
"""

import matplotlib.pyplot as plt
import numpy as np

import fusedstep as fs

CURVATURE = np.array([1000.0, 1.0])  # along x and along y


def gradient(point):
    return CURVATURE * point


RULES = {"Adagrad": lambda point: fs.Adagrad(point, lr=0.1), "RMSprop": lambda point: fs.RMSprop(point, lr=0.01)}

# %%
# Without noise, from (1, 1). SGD's learning rate is close to the largest that does not diverge, 2 / 1,000.

paths = {"SGD": (1 - 0.0019 * CURVATURE) ** np.arange(2001)[:, None]}
for name, make_optimizer in RULES.items():
    point = np.ones(2)
    opt = make_optimizer(point)
    path = [point.copy()]
    for _ in range(2000):
        opt.step(gradient(point))
        path.append(point.copy())
    paths[name] = np.array(path)

# %%
# After how many steps is 5% of the distance left along x, and along y?

needed = {name: tuple(np.argmax(abs(path) <= 0.05, axis=0).tolist()) for name, path in paths.items()}
for name, (along_x, along_y) in needed.items():
    print(f"{name:<8} {along_x:3d} steps along x, {along_y:4d} along y")

assert needed["SGD"][1] > 50 * needed["SGD"][0], "SGD should be fast along x and slow along y"
assert needed["Adagrad"][0] == needed["Adagrad"][1] < 100, "Adagrad should be as fast along y as along x"
assert needed["RMSprop"][0] == needed["RMSprop"][1] < 200, "RMSprop should be as fast along y as along x"

# %%
# Now every step sees the same function moved to a random place, so the gradients never end. We record the effective
# step, lr / (√v + ε), by which a rule multiplies each gradient. Here v is the sum or the average of squared gradients.

STEPS = 100_000
STATE = {"Adagrad": "square_sum", "RMSprop": "square_avg"}
effective = {}
for name, make_optimizer in RULES.items():
    rng = np.random.default_rng(0)
    point = np.ones(2)
    opt = make_optimizer(point)
    v = opt.state["0"][STATE[name]]  # the array itself, which each step updates
    recorded = np.empty((STEPS, 2))
    for step, minimum in enumerate(rng.standard_normal((STEPS, 2))):
        opt.step(gradient(point - minimum))
        recorded[step] = v
    group = opt.param_groups[0]
    effective[name] = group["lr"] / (np.sqrt(recorded) + group["eps"])

# %%
# The effective step is 1,000 times as long along y as along x. Adagrad's sum grows with every step, so after 100 times
# as many steps its effective step is a tenth.

for name, size in effective.items():
    ratio = np.median(size[:, 1] / size[:, 0])
    kept = np.median(size[10_000:] / np.median(size[100:1_000], axis=0))
    print(f"{name}: {ratio:,.0f} times as long along y; {kept:.0%} left of it")
    assert np.isclose(ratio, 1000, rtol=0.02), f"{name} should even out the directions"
    assert np.isclose(kept, {"Adagrad": 0.1, "RMSprop": 1.0}[name], rtol=0.02), f"{name}: the step's decay"

# %%
# The averages on the right are over stretches of the noisy run.

COLORS = {"SGD": "black", "Adagrad": "#D55E00", "RMSprop": "#009E73"}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
for name, path in paths.items():
    left.semilogy(path[:201, 1], color=COLORS[name], linewidth=2, label=name)
    left.semilogy(abs(path[:201, 0]), "o", color=COLORS[name], markerfacecolor="white", markevery=10)
left.set(title="distance from the minimum\nlines: along y, circles: along x", xlabel="steps", ylim=(1e-3, 1.5))
starts = np.unique(np.geomspace(1, STEPS, 50).astype(int))[:-1] - 1
for name, size in effective.items():
    means = np.exp(np.add.reduceat(np.log(size), starts) / np.diff(starts, append=STEPS)[:, None])
    right.loglog(starts + 1, means[:, 1], color=COLORS[name], linewidth=2)
    right.loglog(starts + 1, means[:, 0], color=COLORS[name], linewidth=2, linestyle="--")
right.set(title="effective step, noisy gradients\nsolid: along y, dashed: along x", xlabel="steps")
fig.legend(loc="outside lower center", ncols=3)
plt.show()
