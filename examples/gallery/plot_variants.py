"""
Rprop's variants
================

The variants of Rprop differ in what they do where the sign of a gradient flips. In a narrow valley that lies across the
coordinates, the improved variants need the fewest steps (Igel & Hüsken 2000).
"""

import matplotlib.pyplot as plt
import numpy as np

import fusedstep as fs

# %%
# The surface is a quadratic of curvature 50 along one direction and 1 along the other, turned by 60 degrees.

COS, SIN = np.cos(np.radians(-60)), np.sin(np.radians(-60))
ROTATION = np.array([[COS, SIN], [-SIN, COS]])
HESSIAN = ROTATION.T @ np.diag([50.0, 1.0]) @ ROTATION
assert np.allclose(np.linalg.eigvalsh(HESSIAN), [1, 50]), "the curvatures should be 1 and 50"


def surface(x, y):
    return (HESSIAN[0, 0] * x**2 + 2 * HESSIAN[0, 1] * x * y + HESSIAN[1, 1] * y**2) / 2


def gradient(point):
    return HESSIAN @ point


# %%
# Each variant takes 400 steps. ``irprop+`` must know the loss; the others ignore it.

paths, sizes, needed = {}, {}, {}
for variant in ("rprop-", "rprop+", "irprop-", "irprop-move", "irprop+"):
    point = np.array([-4.0, 1.5])
    opt = fs.Rprop(point, lr=0.1, variant=variant)
    path, size = [point.copy()], [opt.state["0"]["step_size"].copy()]
    for _ in range(400):
        opt.step(gradient(point), loss=surface(*point))
        path.append(point.copy())
        size.append(opt.state["0"]["step_size"].copy())
    paths[variant], sizes[variant] = np.array(path), np.array(size)
    needed[variant] = int(np.argmax(surface(*paths[variant].T) < 1e-4))
    print(f"{variant:<12} the loss is below 0.0001 after {needed[variant]:3d} steps")

assert min(needed.values()) > 0, "every variant should get there"
assert max(needed["irprop-"], needed["irprop+"]) < 100, "the improved variants should need fewer steps"
assert 100 < min(needed["rprop-"], needed["irprop-move"]) < 200, "rprop- and irprop-move should need more"
assert needed["rprop+"] > 200, "rprop+ should need the most"

# %%
# Above, the first 60 steps on the surface; the mark is where they end. Below, the step sizes.

fig, axes = plt.subplots(2, 5, figsize=(9, 5.4), sharex="row", sharey="row", layout="constrained")
x, y = np.meshgrid(np.linspace(-2.1, 0.4, 200), np.linspace(-1.5, 0.5, 200))
for variant, above, below in zip(paths, *axes, strict=True):
    above.contourf(x, y, np.log10(surface(x, y) + 1e-3), levels=10, cmap="Greys_r", alpha=0.35)
    above.plot(*paths[variant][:61].T, ".-", color="#0072B2", linewidth=1, markersize=4)
    above.plot(*paths[variant][60], "X", color="#D55E00", markersize=8, markeredgecolor="white")
    above.set(title=f"{variant}\n{needed[variant]} steps", xlabel="x", xlim=(-2.1, 0.4), ylim=(-1.5, 0.5))
    below.semilogy(sizes[variant][:121, 0], color="#0072B2", label="step size along x")
    below.semilogy(sizes[variant][:121, 1], color="0.4", linestyle="--", label="step size along y")
    below.set(xlabel="steps")
axes[0, 0].set(ylabel="y")
axes[1, 0].set(ylabel="step size")
fig.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()
