"""Train on several processes: ``mpiexec -n 2 python mpi_trainer.py``. Any number up to 4 ends with the same bits."""

import hashlib

import numpy as np
from mpi4py import MPI

import fusedstep as fs
import fusedstep.mpi

LANES = 4  # micro-batches per batch, however many processes compute them

rng = np.random.default_rng(0)  # the same numbers on all ranks
x = rng.normal(size=(4096, 20)).astype(np.float32)
y = np.sin(x @ rng.normal(size=(20, 1)).astype(np.float32))

params = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in {"w": (20, 64), "v": (64, 1)}.items()}
opt = fs.mpi.Sharded(fs.RMSprop, params, comm=MPI.COMM_WORLD, lanes=LANES, lr=2e-3)


def loss_and_gradients(x, y):
    hidden = np.tanh(x @ params["w"])
    error = hidden @ params["v"] - y
    back = error @ params["v"].T * (1 - hidden**2)
    return float(np.mean(error**2)), {"w": 2 * x.T @ back / len(x), "v": 2 * hidden.T @ error / len(x)}


before, _ = loss_and_gradients(x, y)
for _ in range(400):
    batch = rng.integers(len(x), size=256)
    for lane in opt.lanes:  # this rank's share
        rows = batch[lane::LANES]
        opt.add(lane, loss_and_gradients(x[rows], y[rows])[1])
    report = opt.step(clip_norm=1.0)  # the mean over all lanes of all ranks

after, _ = loss_and_gradients(x, y)
if MPI.COMM_WORLD.rank == 0:
    bits = hashlib.sha256(params["w"].tobytes() + params["v"].tobytes()).hexdigest()[:16]
    print(f"loss {before:.3f} before, {after:.3f} after {report.step} steps; bits {bits}")
