"""
A saddle point
==============

The surface x² − y² is level at the origin and falls along y. RMSprop leaves it within a few steps, however small the
gradient along y is. Gradient descent (SGD) and momentum wait until the gradient has grown.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation

import fusedstep as fs


def surface(x, y):
    return x**2 - y**2


def gradient(point):
    x, y = point
    return np.array([2 * x, -2 * y])


# %%
# SGD and momentum are not part of fusedstep. Here they are, for comparison.


class Momentum:
    """Gradient descent with momentum; without momentum it is SGD."""

    def __init__(self, param, lr, mu=0.9):
        self.param, self.lr, self.mu = param, lr, mu
        self.buffer = np.zeros_like(param)

    def step(self, grad):
        self.buffer[...] = self.mu * self.buffer + grad
        self.param -= self.lr * self.buffer


RULES = {
    "SGD": lambda point: Momentum(point, lr=0.01, mu=0.0),
    "Momentum": lambda point: Momentum(point, lr=0.01),
    "Adagrad": lambda point: fs.Adagrad(point, lr=0.01),
    "RMSprop": lambda point: fs.RMSprop(point, lr=0.01),
    "Rprop": lambda point: fs.Rprop(point, lr=0.01),
}

# %%
# Every rule starts at (1, 10⁻⁶), a hair beside the ridge.

START = (1.0, 1e-6)
paths = {}
for name, make_optimizer in RULES.items():
    point = np.array(START)
    opt = make_optimizer(point)
    path = [point.copy()]
    for _ in range(1500):
        opt.step(gradient(point))
        path.append(point.copy())
    paths[name] = np.array(path)

# %%
# When is each path 0.1 away along y, and when 1? Rprop passes RMSprop on the way, because its step sizes grow while the
# sign stays the same.


def steps_until(name, distance):
    return np.argmax(abs(paths[name][:, 1]) >= distance)


left = {name: steps_until(name, 0.1) for name in RULES}
for name in RULES:
    print(f"{name:<9} 0.1 away after {left[name]:3d} steps, 1 away after {steps_until(name, 1.0):4d}")

assert min(left, key=left.get) == "RMSprop", "RMSprop should leave first"
assert left["RMSprop"] <= 5, "RMSprop should leave within five steps"
assert left["Momentum"] > 100, "momentum should linger"
assert left["SGD"] > 500, "SGD should linger"
assert steps_until("Rprop", 1.0) < steps_until("RMSprop", 1.0), "Rprop should pass RMSprop"

# %%
# The first 130 steps. The marks are where the paths end.

STYLES = {
    "SGD": {"color": "black", "linestyle": ":"},
    "Momentum": {"color": "#CC79A7", "linestyle": "--"},
    "Adagrad": {"color": "#D55E00"},
    "RMSprop": {"color": "#009E73"},
    "Rprop": {"color": "#0072B2"},
}


def draw_surface(ax):
    x, y = np.meshgrid(np.linspace(-1.1, 1.1, 200), np.linspace(-0.3, 1.2, 200))
    ax.contourf(x, y, surface(x, y), levels=np.linspace(-1.5, 1.5, 16), cmap="Greys_r", alpha=0.35)
    ax.annotate("start", START, (0, -12), textcoords="offset points", ha="center")
    ax.set(xlabel="x (up)", ylabel="y (down)", xlim=(-1.1, 1.1), ylim=(-0.3, 1.2), xticks=(-1, -0.5, 0, 0.5, 1))


fig = plt.figure(figsize=(9, 4.8), layout="constrained")
space, above = fig.add_subplot(1, 2, 1, projection="3d", computed_zorder=False), fig.add_subplot(1, 2, 2)
x, y = np.meshgrid(np.linspace(-1.1, 1.1, 40), np.linspace(-1.1, 1.1, 40))
space.plot_surface(x, y, surface(x, y), cmap="Greys_r", alpha=0.35, linewidth=0)
space.view_init(elev=30, azim=50)
space.set_box_aspect((1, 1, 0.75), zoom=0.85)
space.set(title="in space", xlabel="x", ylabel="y", zlabel="x² − y²")
space.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1), zticks=(-1, 0, 1))
draw_surface(above)
above.set_title("from above")
for name, path in paths.items():
    shown = path[:130]
    shown = shown[abs(shown[:, 1]) < 1.1]
    space.plot(*shown.T, surface(*shown.T), marker="o", markevery=[-1], **STYLES[name])
    above.plot(*shown.T, linewidth=2, marker="o", markevery=[-1], label=name, **STYLES[name])
fig.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=5)

# %%
# A path that starts closer to the ridge has a smaller first gradient along y. If that gradient is a tenth, SGD needs
# 116 steps more and momentum 22. RMSprop needs about as many as before.

OFFSETS = 10.0 ** np.arange(-2, -11, -1)


def steps_to_leave(make_optimizer, offset):
    point = np.array([1.0, offset])
    opt = make_optimizer(point)
    steps = 0
    while abs(point[1]) < 0.1:
        opt.step(gradient(point))
        steps += 1
    return steps


needed = {name: [steps_to_leave(make, offset) for offset in OFFSETS] for name, make in RULES.items()}

assert set(needed["RMSprop"]) <= {3, 4, 5}, "RMSprop should leave however small the gradient is"
for name, steps in {"SGD": 116, "Momentum": 22}.items():
    assert set(np.diff(needed[name])) <= {steps, steps + 1}, f"{name} should need more steps"

fig, (distance, leave) = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
for name, path in paths.items():
    distance.loglog(abs(path[:, 1]), linewidth=2, label=name, **STYLES[name])
    leave.loglog(OFFSETS, needed[name], linewidth=2, marker=".", **STYLES[name])
distance.axhline(0.1, color="0.5", linewidth=1)
distance.set(title="distance along y", xlabel="steps", xlim=(1, 1500), ylim=(5e-7, 2))
leave.set(title="steps until 0.1 away", xlabel="distance along y at the start")
leave.invert_xaxis()
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


shown = np.unique(np.geomspace(1, 800, 28).astype(int)) - 1
animation = FuncAnimation(fig, draw_step, [*shown, *[shown[-1]] * 8], interval=150)
plt.show()
