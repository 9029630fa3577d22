"""A training loop in NumPy: a line is fitted to points, and one call updates all parameters in place."""

import numpy as np

import fusedstep as fs

x = np.linspace(-1.0, 1.0, 101)
y = 3.0 * x - 2.0

params = {"slope": np.zeros(1), "offset": np.zeros(1)}  # any nesting of dicts and lists, any shapes
optimizer = fs.RMSprop(params, lr=0.1, alpha=0.9)

for epoch in range(300):
    error = params["slope"] * x + params["offset"] - y
    grads = {"slope": np.array([np.mean(error * x)]), "offset": np.array([np.mean(error)])}
    optimizer.param_groups[0]["lr"] = 0.1 * 0.98**epoch  # hyperparameters may change between steps
    report = optimizer.step(grads, clip_norm=1.0)

print(f"slope {params['slope'][0]:.4f}, offset {params['offset'][0]:.4f} after {report.step} steps")
