"""
A large first gradient
======================

Beale's function has a long flat valley between steep walls. From a steep corner the first gradient is huge: momentum
overshoots, Adagrad jumps and then slows down, RMSprop takes a nearly straight path.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation

import fusedstep as fs

START = (4.5, -1.25)
MINIMUM = (3.0, 0.5)


def surface(x, y):
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def gradient(point):
    x, y = point
    r1, r2, r3 = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    along_x = 2 * (r1 * (y - 1) + r2 * (y**2 - 1) + r3 * (y**3 - 1))
    along_y = 2 * (r1 * x + r2 * 2 * x * y + r3 * 3 * x * y**2)
    return np.array([along_x, along_y])


assert np.linalg.norm(gradient(START)) > 600, "the first gradient should be huge"
assert np.linalg.norm(gradient((3.7, 0.632))) < 0.1, "the valley should be flat"
assert not gradient(MINIMUM).any(), "the minimum should be level"

# %%
# SGD and momentum are not part of fusedstep. Here they are, for comparison. Twice this learning rate makes
# momentum diverge.


class Momentum:
    """Gradient descent with momentum; without momentum it is SGD."""

    def __init__(self, param, lr, mu=0.9):
        self.param, self.lr, self.mu = param, lr, mu
        self.buffer = np.zeros_like(param)

    def step(self, grad):
        self.buffer[...] = self.mu * self.buffer + grad
        self.param -= self.lr * self.buffer


RULES = {
    "SGD": lambda point: Momentum(point, lr=0.001, mu=0.0),
    "Momentum": lambda point: Momentum(point, lr=0.001),
    "Adagrad": lambda point: fs.Adagrad(point, lr=0.5),
    "RMSprop": lambda point: fs.RMSprop(point, lr=0.01),
    "Rprop": lambda point: fs.Rprop(point, lr=0.01),
}

paths = {}
for name, make_optimizer in RULES.items():
    point = np.array(START)
    opt = make_optimizer(point)
    path = [point.copy()]
    for _ in range(2000):
        opt.step(gradient(point))
        path.append(point.copy())
    paths[name] = np.array(path)

# %%
# Momentum carries the point far beyond the minimum. RMSprop's path is 1.1 times as long as the straight line.


def overshoot(path):
    """Return how far the path goes beyond the minimum, along x or along y."""
    return np.max((np.array(MINIMUM) - path) * np.sign(np.subtract(START, MINIMUM)))


lengths, distances, detours = {}, {}, {}
for name, path in paths.items():
    lengths[name] = np.linalg.norm(np.diff(path, axis=0), axis=1)
    distances[name] = np.linalg.norm(path - MINIMUM, axis=1)
    arrived = np.flatnonzero(distances[name] < 0.1)
    end = arrived[0] if arrived.size else len(path) - 1
    detours[name] = lengths[name][:end].sum() / np.linalg.norm(path[end] - path[0])
    arrival = f"after {end:4d} steps" if arrived.size else "not yet"
    print(f"{name:<9} overshoot {overshoot(path):.2f}, detour {detours[name]:.2f}, 0.1 from the minimum {arrival}")

assert overshoot(paths["Momentum"]) > 1.6, "momentum should overshoot"
assert detours["Momentum"] > 4, "momentum should make a long detour"
assert overshoot(paths["RMSprop"]) < 0.25, "RMSprop should not overshoot"
assert detours["RMSprop"] < 1.11, "RMSprop's path should be nearly straight"

# %%
# Adagrad never forgets the first gradient. Its first step is as long as the learning rate along x and along y, and the
# steps after it are short. RMSprop forgets, so its steps stay about as long as the first.

steps = lengths["Adagrad"]
assert np.isclose(steps[0], 0.5 * np.sqrt(2)), "Adagrad's first step should be lr along x and along y"
assert (steps[[1, 9, 99]] / steps[0] < [0.21, 0.08, 0.004]).all(), "Adagrad should slow down"
steps = lengths["RMSprop"]
assert min(steps[99], steps[-1]) > 0.25 * steps[0], "RMSprop should not slow down"
assert distances["RMSprop"][300] < 0.1 < distances["Adagrad"][1700], "RMSprop should arrive long before Adagrad"

# %%
# The paths from above. Adagrad and SGD are slow in the valley, Rprop gets faster while the sign stays the same.

STYLES = {
    "SGD": {"color": "black", "linestyle": ":"},
    "Momentum": {"color": "#CC79A7", "linestyle": "--"},
    "Adagrad": {"color": "#D55E00"},
    "RMSprop": {"color": "#009E73"},
    "Rprop": {"color": "#0072B2"},
}


def draw_surface(ax):
    x, y = np.meshgrid(np.linspace(0.9, 5, 200), np.linspace(-1.45, 1.6, 200))
    ax.contourf(x, y, np.log10(surface(x, y) + 1e-3), levels=12, cmap="Greys_r", alpha=0.35)
    ax.plot(*MINIMUM, "k+", markersize=14, markeredgewidth=2, zorder=3)
    ax.annotate("start", START, (8, 0), textcoords="offset points", va="center")
    ax.annotate("minimum", MINIMUM, (8, -12), textcoords="offset points")
    ax.set(xlabel="x", ylabel="y", xlim=(0.9, 5), ylim=(-1.45, 1.6))


fig, ax = plt.subplots(figsize=(9, 5.5), layout="constrained")
draw_surface(ax)
ax.set_title("2,000 steps; marks: after 20 steps")
for name, path in paths.items():
    ax.plot(*path.T, linewidth=2, marker="o", markevery=[20], label=name, **STYLES[name])
fig.legend(loc="outside lower center", ncols=5)

# %%
# The length of each step, and the distance from the minimum.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
for name in paths:
    left.loglog(range(1, 2001), lengths[name], linewidth=1.5, label=name, **STYLES[name])
    right.loglog(distances[name], linewidth=1.5, **STYLES[name])
left.set(title="length of each step", xlabel="steps", ylim=(1e-7, 2))
right.set(title="distance from the minimum", xlabel="steps", xlim=(1, 2000), ylim=(1e-5, 4))
fig.legend(loc="outside lower center", ncols=5)

# %%
# The same in motion. Time runs faster and faster.

fig, ax = plt.subplots(figsize=(8, 5.5), dpi=80)
draw_surface(ax)
lines = {name: ax.plot([], [], linewidth=2, marker="o", label=name, **STYLES[name])[0] for name in paths}
ax.legend(loc="upper left")


def draw_step(step):
    for name, line in lines.items():
        line.set(data=paths[name][: step + 1].T, markevery=[step])
    ax.set_title(f"step {step}")


shown = np.unique(np.geomspace(1, 2001, 28).astype(int)) - 1
animation = FuncAnimation(fig, draw_step, [*shown, *[shown[-1]] * 8], interval=150)
plt.show()
