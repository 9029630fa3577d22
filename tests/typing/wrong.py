"""Uses that a type checker must flag, each on its line; nothing here is run."""

from __future__ import annotations

import numpy as np

import fusedstep as fs

single, double = np.zeros(3, np.float32), np.zeros(3)
half, whole, signs = np.zeros(3, np.float16), np.zeros(3, np.int64), np.zeros(3, np.int8)
rmsprop = fs.RMSprop({"w": single})
rprop = fs.Rprop(double)
adagrad = fs.Adagrad(double)

fs.RMSprop({single})
fs.RMSprop(1.0)
fs.RMSprop({"w": single}.values())
fs.RMSprop(array for array in [single])
fs.RMSprop({"w": [1.0, 2.0]})
fs.RMSprop(single, lr="0.1")
fs.RMSprop(single, 0.1, 0.9)
fs.RMSprop(single, learning_rate=0.1)
fs.RMSprop(single, momentum_form="keras")
fs.RMSprop(single, verify="always")
fs.RMSprop(single, rounding="up")
fs.RMSprop(single, state_dtype="float16")
fs.Adagrad(single, momentum=0.9)
fs.Rprop(single, etas=0.5)
fs.Rprop(single, variant="rprop")
fs.Optimizer(single)
fs.RMSprop.like("keras", single, etas=(0.5, 1.2))
fs.RMSprop.like("keras", single, learning_rate=0.1)
fs.RMSprop.like("keras", single, alpha="0.9")
fs.Rprop.like("torch", single, variant="rprop")
rmsprop.alpha = "x"
rmsprop.learning_rate = 0.1
rmsprop.etas = (0.5, 1.2)
rmsprop.momentum_form = "keras"
rprop.variant = "irprop"
rmsprop.steps = 3
rmsprop.param_groups = []
print(rmsprop.unknown)
print(adagrad.alpha)
rmsprop.step()
rmsprop.step(single, nonfinite="ignore")
rmsprop.step(single, clip_norm="1")
rmsprop.step(single, 0.5)
rmsprop.step(single, mask=True)
rmsprop.step({"w": {1.0}})
print(rmsprop.step(single).norm)
rmsprop.add_param_group([single])
fs.rmsprop_(single, single, single)
fs.rmsprop_(single, double, single, lr=0.1)
fs.rmsprop_(half, double, single, lr=0.1)
fs.rmsprop_(double, whole, double, lr=0.1)
fs.rmsprop_(half, half, half, lr=0.1)
fs.rmsprop_(double, double, single, lr=0.1)
fs.rmsprop_(single, single, single, lr=0.1, momentum_buffer=double)
fs.rmsprop_(single, single, single, lr=0.1, momentum_form="keras")
fs.adagrad_(whole, whole, whole, lr=0.1)
fs.adagrad_(single, single, single, lr=0.1, alpha=0.9)
fs.adagrad_da_(single, single, single, single, lr=0.1)
fs.rprop_(single, single, single, single)
fs.rprop_(single, single, single, signs, variant="rprop")
fs.minimize(single, single)
fs.minimize(print, single, "rprop")
fs.minimize(print, single, jac=None)
fs.minimize(print, single, learning_rate=0.1)
fs.minimize(print, single, lr="0.1")
print(fs.minimize(print, single).steps)
fs.scipy_method("newton")
fs.Rows(double, double)
fs.Rows([1, 2], double)
fs.adagrad_(single, single, single, lr=0.1, rows=double)
fs.rprop_(single, single, single, signs, rows=np.zeros(3, np.int64))
fs.AdagradNorm(single, per="column")
