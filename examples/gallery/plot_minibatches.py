"""
Mini-batches
============

Nine mini-batches give a gradient of 0.1 and the tenth gives -0.9. They cancel, so the weight should stay where it is.
Rprop carries it away, because it takes nine steps one way and one step back. RMSprop keeps the weight near its start.

Hinton introduced RMSprop with this example (*Neural Networks for Machine Learning*, lecture 6e).
"""

import matplotlib.pyplot as plt
import numpy as np

import fusedstep as fs

LR = 0.01
GRADIENTS = [0.1] * 9 + [-0.9]
EPOCHS = 30

assert abs(sum(GRADIENTS)) < 1e-15, "the gradients should cancel"

# %%
# Each rule starts with the weight at 0 and sees the ten gradients 30 times, and so does gradient descent (SGD).

RULES = {
    "Rprop": lambda w: fs.Rprop(w, lr=LR),
    "RMSprop, α = 0.9": lambda w: fs.RMSprop(w, lr=LR, alpha=0.9),
    "RMSprop, α = 0.99": lambda w: fs.RMSprop(w, lr=LR, alpha=0.99),
    "Adagrad": lambda w: fs.Adagrad(w, lr=LR),
}

weights = {}
for name, make_optimizer in RULES.items():
    w = np.zeros(1)
    opt = make_optimizer(w)
    weights[name] = [0.0]
    for gradient in GRADIENTS * EPOCHS:
        opt.step(np.array([gradient]))
        weights[name].append(w[0])
weights["SGD"] = -LR * np.cumsum([0.0, *GRADIENTS * EPOCHS])

# %%
# How far does the weight move in all, and how far in the last ten mini-batches? The second number is in learning rates.

moved = {name: abs(path[-1]) for name, path in weights.items()}
drift = {name: abs(path[-1] - path[-11]) / LR for name, path in weights.items()}
for name in weights:
    print(f"{name:<18} moved {moved[name]:6.3f}   drift {drift[name]:7.3f}")

assert moved["Rprop"] > 19, "Rprop should run away"
assert drift["Rprop"] > 150, "Rprop should run away"
for name, limit in {"RMSprop, α = 0.9": 0.7, "RMSprop, α = 0.99": 0.08}.items():
    assert moved[name] < min(0.5, moved["Rprop"] / 40), f"{name}: the weight should stay near its start"
    assert drift[name] < limit, f"{name}: the drift should be small"

# %%
# Rprop also gets faster. In ten mini-batches the sign stays the same eight times and flips twice, so every ten move the
# weight 1.2⁸ · 0.5² = 1.07 times as far as the ten before.

moves = np.diff(weights["Rprop"][10::10])
assert np.allclose(moves[1:] / moves[:-1], 1.2**8 * 0.5**2, rtol=1e-9), "Rprop's moves should grow by 1.07"

# %%
# The right picture enlarges the weights near 0. RMSprop's average of squared gradients starts at 0, so its first steps
# are long. After that it drifts slowly, and more slowly with α nearer to 1.

STYLES = {
    "Rprop": {"color": "#0072B2"},
    "RMSprop, α = 0.9": {"color": "#009E73"},
    "RMSprop, α = 0.99": {"color": "#009E73", "linestyle": "--"},
    "Adagrad": {"color": "#D55E00"},
    "SGD": {"color": "black", "linestyle": ":"},
}
fig, (whole, close) = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
fig.suptitle(
    "Nine gradients of 0.1, one of −0.9, repeated. They cancel, but Rprop\n"
    f"carries the weight {moved['Rprop']:.1f} away, RMSprop only {moved['RMSprop, α = 0.9']:.2f}"
)
for name, path in weights.items():
    whole.plot(path, linewidth=2, label=name, **STYLES[name])
    close.plot(path, linewidth=2, **STYLES[name])
whole.set(title="whole path", xlabel="mini-batches", ylabel="weight")
close.set(title="close up", xlabel="mini-batches", ylabel="weight", ylim=(-0.6, 0.05))
fig.legend(loc="outside lower center", ncols=5)
plt.show()
