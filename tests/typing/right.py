"""Uses that a type checker must accept; nothing here is run."""

from __future__ import annotations

import array
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep.typing import Grads, Params, Tree, Variant


class Layer(NamedTuple):
    w: NDArray[np.float32]
    b: NDArray[np.float32]


@dataclasses.dataclass
class Model:
    first: Layer
    rest: list[Layer]


@attrs.define
class Other:
    w: NDArray[np.float64]


single, double = np.zeros(3, np.float32), np.zeros(3)
signs, half = np.zeros(3, np.int8), np.zeros(3, np.float16)
anything: NDArray[Any] = single
layer = Layer(single, single)
flat: dict[str, NDArray[np.float32]] = {"w": single}
nested: dict[str, list[NDArray[np.float64]]] = {"layers": [double, double]}
groups: list[dict[str, Any]] = [{"params": single}, {"params": [double], "lr": 0.1}]

params: list[Params] = [
    single, double, anything, [single, double], (single,), flat, nested, groups, layer, Model(layer, [layer]),
    Other(double), OrderedDict(w=single), MappingProxyType(flat), array.array("f", [1.0]), memoryview(b"1234"),
]  # fmt: skip
trees: list[Tree] = [single, nested, layer, {"a": {"b": (single, layer)}}]
grads: list[Grads] = [single, None, [None, single], {"w": None}, flat, nested, layer]

rmsprop = fs.RMSprop(nested, 0.1, alpha=0.95, momentum=0.9, momentum_form="tf", verify="first")
adagrad = fs.Adagrad([{"params": single}, {"params": double, "lr": 0.1}], eps=1e-8, lr_decay=1)
rprop = fs.Rprop(layer, etas=(0.5, 1.3), variant="irprop+")
for model in (Model(layer, [layer]), Other(double), flat, OrderedDict(w=single)):
    fs.RMSprop(model).step(model)
like: fs.RMSprop = fs.RMSprop.like("keras", flat, 0.1, weight_decay=0.004, centered=True, verify="every")
fs.Rprop.like("torch", single, etas=(0.5, 1.2))
fs.Adagrad.like("keras", [{"params": single, "lr": 0.5}], initial_accumulator_value=0.1)

some = fs.Rows(np.zeros(2, np.int64), single)
rmsprop.step({"layers": [some, None]})
adagrad.step([some, double])
fs.adagrad_(single, single, single, lr=0.1, rows=np.zeros(3, np.uint32))
fs.AdagradNorm(single, per="row", mean=True)
report: fs.StepReport = rmsprop.step({"layers": [double, None]}, clip_norm=1.0, nonfinite="skip", zero_grads=True)
rmsprop.step(nested, mask={"layers": [double > 0, None]})
norm: float | None = report.grad_norm
step, _, skipped, names = report
rate: float = rmsprop.lr
rmsprop.lr = 0.01
rmsprop.lr = double
fs.Rprop(single, lr=double, step_sizes=(0.0, single))
rmsprop.alpha = 1
rmsprop.nesterov = True
rmsprop.momentum_form = "torch"
variant: Variant = rprop.variant
count: int = rmsprop.steps
states: Mapping[str, Mapping[str, NDArray[Any]]] = rmsprop.state
rmsprop.param_groups[0]["lr"] = 0.1
rmsprop.add_param_group({"params": single, "lr": 0.1})
rmsprop.load_state_dict(rmsprop.state_dict())
smallest: float = rprop.step_size_stats()["w"].min

fs.rmsprop_(single, single, single, lr=0.1)
fs.rmsprop_(double, double, double, lr=0.1, grad_avg=double, momentum_form="tf", step=3)
fs.rmsprop_(anything, anything, anything, lr=0.1)
fs.rmsprop_(double, single, double, lr=0.1)
fs.rmsprop_(double, half, double, lr=0.1)
fs.rmsprop_(single, half, single, lr=0.1)
fs.rmsprop_(single, anything, single, lr=0.1)
fs.rmsprop_(single, anything, anything, lr=0.1, key=3)
fs.rmsprop_(half, half, single, lr=0.1, momentum_buffer=single, momentum=0.9)
fs.adagrad_(anything, anything, anything, lr=0.1, param_low=np.zeros(3, np.uint16))
fs.RMSprop({"w": half}, state_dtype="bfloat16", rounding="nearest", seed=3, master=False)
fs.adagrad_(double, double, double, lr=0.1)
fs.rprop_(single, single, single, signs, variant="grprop-slr")
fs.reference.adagrad_(double, double, double, lr=0.1)


def any_optimizer(optimizer: fs.Optimizer) -> float:
    optimizer.step([single])
    return optimizer.weight_decay


class Mine(fs.RMSprop):
    note: str

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree, lr=0.5)
        self.note = "mine"


any_optimizer(Mine(single))
with fs.use_isa("baseline"):
    print(fs.show_config()["threads"], fs.dialects()["rprop"])


def both(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    return float(x @ x), 2 * x


found = fs.minimize(both, [1.0, 2.0], "rmsprop", bounds=[(0, None)] * 2, alpha=0.9, lr=0.1, maxiter=10)
best: float = found.fun
fs.minimize(lambda x: x["w"].sum(), flat, jac=lambda x: x, callback=print, target=1.0, step_sizes=(0.0, 1.0))
fs.scipy_method("rprop-")
