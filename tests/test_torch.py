"""``fusedstep.torch`` compared with ``torch.optim``: the same runs, states and errors, without copies."""

from __future__ import annotations

import ast
import contextlib
import copy
import gc
import inspect
import io
import itertools
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fusedstep as fs  # noqa: E402
import fusedstep.torch as ft  # noqa: E402
from checks import difference, interrupted  # noqa: E402
from registry import BFLOAT16, ENTRIES, STORAGES, Entry, Storage  # noqa: E402

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.float64)
STEPS = 12

NAMES = ("RMSprop", "Rprop", "Adagrad")


class Row(SimpleNamespace):
    """A row of torch's tables: OptimizerInput or ErrorOptimizerInput."""

    def __init__(self, optimizer_error_input: Any = None, **named: Any) -> None:
        super().__init__(optimizer_error_input=optimizer_error_input, **named)


def of_torchs_own_tests(function: str) -> Any:
    """Call a function of ``torch/testing/_internal/common_optimizers.py`` for the CPU. It has the tables that torch's
    own tests of optimizers use. It is read from the file, because an import needs packages of torch's tests."""
    text = (Path(torch.__file__).parent / "testing" / "_internal" / "common_optimizers.py").read_text()
    wanted = {function, "get_error_inputs_for_all_optims"}
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    known = {"torch": torch, "Parameter": torch.nn.Parameter, "OptimizerInput": Row, "ErrorOptimizerInput": Row,
             "_get_device_type": str, "CUDA_CONFIG_GPUS": ()}  # fmt: skip
    exec(compile(ast.Module(functions, []), "common_optimizers.py", "exec"), known)
    return known[function]("cpu", torch.float32)


MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "RMSprop": ({"alpha": 0.9, "eps": 1e-3, "momentum": 0.9}, {"lr": torch.tensor(0.001)}),
    "Rprop": ({"step_sizes": (1e-3, 0.02), "lr": torch.tensor(0.01)}, {"lr": 0.0}),
    "Adagrad": ({"lr": 0.1, "eps": 1e-3},),
}
GRID = {name: [row.kwargs for row in of_torchs_own_tests(f"optim_inputs_func_{name.lower()}")] for name in NAMES}
for name in NAMES:
    GRID[name] += MORE[name]


OURS: dict[str, Any] = {"state_dtype": None, "rounding": "nearest", "seed": 0, "master": False}
"""The arguments that torch does not have."""

each_name = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_options = pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in NAMES for options in GRID[name]], ids=str
)


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch() -> Iterator[None]:
    """These networks are too small for more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(name: str) -> Any:
    return getattr(torch.optim, name)


def ours(name: str) -> Any:
    return getattr(ft, name)


def of_one_value(values: Any, name: str, **options: Any) -> tuple[list[Tensor], list[Any]]:
    """Return two parameters with these values, and torch's optimizer of the first and ours of the second."""
    params = [values.clone().requires_grad_() for _ in range(2)]
    return params, [cls([param], **options) for cls, param in zip((theirs(name), ours(name)), params, strict=True)]


def of_networks(name: str, **options: Any) -> tuple[tuple[Any, Any], list[Any]]:
    """Return two equal networks, and torch's optimizer of the first and ours of the second."""
    models = network(), network()
    return models, [cls(m.parameters(), **options) for cls, m in zip((theirs(name), ours(name)), models, strict=True)]


KEY = {"RMSprop": "square_avg", "Rprop": "step_size", "Adagrad": "sum"}
"""A state of each rule."""
DIALECT: dict[str, dict[str, Any]] = {"RMSprop": {"alpha": 0.99}, "Rprop": {"variant": "irprop-"}, "Adagrad": {}}
"""The options that make ``fusedstep``'s own optimizers torch's."""


def network(dtype: Any = torch.float32) -> Any:
    """Return a network. All are equal: unlike torch's generator, theirs is used by no other thread."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.uniform_(-0.4, 0.4, generator=generator)
    return model.to(dtype)


def loss_of(model: Any, t: int = 0) -> Tensor:
    """Return the loss on the batch of step ``t``."""
    generator = torch.Generator().manual_seed(t)
    dtype = next(model.parameters()).dtype
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (16,), generator=generator)
    return torch.nn.functional.cross_entropy(model(x), y)


def train(model: Any, optimizer: Any, steps: range = range(STEPS)) -> Iterator[int]:
    for t in steps:
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
        yield t


def assert_near(name: str, found: Any, expected: Any, ulps: int, where: str = "") -> None:
    """Check that parameters (or tensors) are equal: to the last bit for Rprop, otherwise up to some units in the last
    place of the largest."""
    for a, b in zip(found, expected, strict=True):
        if name == "Rprop":
            assert torch.equal(a, b), where
        else:
            tolerance = ulps * torch.finfo(a.dtype).eps * float(b.detach().abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda told: f"{where}: {told}")


def assert_models_near(name: str, models: Any, ulps: int, where: str = "") -> None:
    assert_near(name, models[1].parameters(), models[0].parameters(), ulps, where)


def assert_states_near(name: str, found: Any, expected: Any, ulps: int) -> None:
    """Check that two ``state_dict()`` have the same entries and values; only signs for Rprop's ``prev``."""
    assert list(found["state"]) == list(expected["state"])
    for key, entry in expected["state"].items():
        assert list(found["state"][key]) == list(entry)
        for state, tensor in entry.items():
            mine = found["state"][key][state]
            assert (mine.dtype, mine.shape, mine.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), state
            if state == "prev":
                assert torch.equal(mine.sign(), tensor.sign())
            else:
                assert_near(name, [mine], [tensor], ulps, state)


# ------------------------------------------------------------------------------------------------------------- the runs


@each_dtype
@each_options
def test_each_step_is_that_of_torch(name: str, options: dict[str, Any], dtype: Any) -> None:
    """From the same parameters and states, each step ends within 4 units in the last place of torch's; with Rprop, at
    the same bits."""
    model, mine = network(dtype), network(dtype)
    reference = theirs(name)(model.parameters(), **options)
    optimizer = ours(name)(mine.parameters(), **options)
    for t in train(model, reference):
        for a, b in zip(mine.parameters(), model.parameters(), strict=True):
            a.grad = b.grad.clone()
        optimizer.step()
        assert_near(name, mine.parameters(), model.parameters(), 4, f"step {t}")
        assert_states_near(name, optimizer.state_dict(), reference.state_dict(), 4)
        mine.load_state_dict(model.state_dict())
        optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))


@each_dtype
@each_options
def test_bits_of_the_reference(name: str, options: dict[str, Any], dtype: Any) -> None:
    """Updates have the bits of ``fusedstep``'s own optimizer with torch's dialect."""
    if float(options.get("lr", 1)) == 0:
        pytest.skip("in torch the lower limit of step sizes holds for lr=0, too")
    model = network(dtype)
    optimizer = ours(name)(model.parameters(), **options)
    arrays = [param.detach().numpy().copy() for param in model.parameters()]
    mine = {key: float(value) if isinstance(value, Tensor) else value for key, value in options.items()}
    plain = getattr(fs, name)(arrays, verify="every", **{**DIALECT[name], **mine})
    for _ in train(model, optimizer, range(4)):
        plain.step([param.grad.numpy() for param in model.parameters()])
        for param, array in zip(model.parameters(), arrays, strict=True):
            assert np.array_equal(param.detach().numpy(), array)


BESIDE = [entry for entry in ENTRIES if entry.class_name not in NAMES and "torch" in fs.dialects().get(entry.rule, {})]


@pytest.mark.parametrize("entry", BESIDE, ids=lambda entry: entry.rule)
def test_rules_that_have_no_class_here(entry: Entry) -> None:
    """``like("torch")`` of a rule goes as torch's own class goes: parameter and states, after each of 20 steps."""
    for row in of_torchs_own_tests(f"optim_inputs_func_{entry.rule}"):
        tensor = torch.linspace(-1, 1, 67, dtype=torch.float64).requires_grad_()
        array = tensor.detach().numpy().copy()
        optimizer = getattr(fs, entry.class_name).like("torch", array, **row.kwargs)
        reference = getattr(torch.optim, entry.class_name)([tensor], **row.kwargs)
        for t in range(20):
            tensor.grad = torch.randn(67, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
            optimizer.step(tensor.grad.numpy())
            reference.step()
            theirs = [tensor, *(reference.state[tensor][key] for key in optimizer.state["0"])]
            ours = map(torch.from_numpy, (array, *optimizer.state["0"].values()))
            assert_near(entry.rule, ours, theirs, 128, f"{row.kwargs}, step {t}")


@each_name
def test_defaults_and_arguments_are_those_of_torch(name: str) -> None:
    """The same arguments in the same order, the same groups with all hyperparameters, and then our own."""
    signatures = [inspect.signature(cls).parameters.values() for cls in (theirs(name), ours(name))]
    a, b = ([(p.name, p.kind, p.default) for p in signature] for signature in signatures)
    assert b[: len(a)] == a
    assert {each: default for each, _, default in b[len(a) :]} == OURS
    a, b = (cls([torch.zeros(1)]).state_dict()["param_groups"] for cls in (theirs(name), ours(name)))
    assert b == [a[0] | OURS]
    lines = [set(str(cls([torch.zeros(1)])).splitlines()) for cls in (theirs(name), ours(name))]
    assert lines[1] - lines[0] == {f"    {key}: {value}" for key, value in OURS.items()}


S = torch.optim.lr_scheduler
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda t: 0.9**t),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.ConstantLR(o, 0.1, 3), S.ExponentialLR(o, 0.9)], [3]),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: S.CyclicLR(o, 1e-3, 1e-2, 3, cycle_momentum="momentum" in o.defaults),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 1e-2, STEPS + 1, cycle_momentum="momentum" in o.defaults),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 1e-3, 4),
}
"""Those that set the learning rate or the momentum in different ways."""


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=("number", "tensor"))
@each_name
def test_schedulers(name: str, scheduler: str, lr: Any) -> None:
    """Follow the learning rates of torch's schedulers, also tensors, and a momentum."""
    models, optimizers = of_networks(name)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = copy.deepcopy(lr)
    schedulers = [SCHEDULERS[scheduler](optimizer) for optimizer in optimizers]
    seen = set()
    for t, _ in zip(*map(train, models, optimizers), strict=True):
        assert_models_near(name, models, 2000, f"step {t}")
        for each in schedulers:
            each.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
        now = [{key: group.get(key) for key in ("lr", "momentum")} for o in optimizers for group in o.param_groups]
        assert now[0] == now[1]
        seen.add(tuple(float(value) for value in now[1].values() if value is not None))
    assert len(seen) > 1


@each_name
def test_closure(name: str) -> None:
    """Run the closure once, with gradients enabled, wherever ``step`` is called, and return its loss."""
    models, optimizers = of_networks(name)
    for t in range(5):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model: Any = model, optimizer: Any = optimizer, t: int = t) -> Tensor:
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                loss = loss_of(model, t)
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure))
                assert not torch.is_grad_enabled()
        assert_near("", [losses[1]], [losses[0]], 500)
        assert losses[1].requires_grad
    assert optimizers[1].step() is None


def python_calls(call: Callable[[], Any]) -> list[str]:
    """Return the names of the Python functions that run in a call, except its own."""
    names: list[str] = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


class Stepped:
    """An optimizer over two parameters after plain steps, so that the next one needs no Python."""

    def __init__(self, cls: Any, **options: Any) -> None:
        self.params = [torch.linspace(1, 2, n).requires_grad_() for n in (16, 5)]
        self.optimizer = cls([{"params": [param]} for param in self.params], **options)
        for _ in range(3):
            self.step()

    def grads(self) -> None:
        for param in self.params:
            param.grad = torch.linspace(-1, 1, len(param)) + float(param.detach()[0])

    def step(self) -> None:
        self.grads()
        self.optimizer.step()


@pytest.mark.skipif(not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="torch shows no memory in C")
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="threads may run between")
@each_name
def test_a_step_like_the_one_before_runs_no_python(name: str) -> None:
    """Also with another lr and without a gradient, but not with hooks, a profiler, a scale or a lr that is a tensor."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    world = Stepped(ours(name))
    optimizer, group = world.optimizer, world.optimizer.param_groups[0]
    assert not python_calls(optimizer.step)
    world.params[1].grad = None
    assert not python_calls(optimizer.step)
    if name != "Rprop":
        group["lr"] = 0.5
        assert not python_calls(optimizer.step)
    called: list[int] = []
    for register in (
        optimizer.register_step_pre_hook,
        optimizer.register_step_post_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    ):
        handle = register(lambda *_: called.append(1))
        optimizer.step()
        handle.remove()
        assert len(called) == 1
        called.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert f"Optimizer.step#{name}.step" in {event.key for event in profile.key_averages()}


class Own(ft.RMSprop):
    """A subclass with a step of its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if closure is not None else super().step()


def test_hooks_of_a_subclass_run_once() -> None:
    """Hooks run before and after a step, also of a class with a step of its own."""
    for cls in (ft.RMSprop, Own):
        world, called = Stepped(cls), []
        note = lambda *_: called.append(float(world.params[0].detach()[-1]))  # noqa: B023, E731
        world.optimizer.register_step_pre_hook(note)
        world.optimizer.register_step_post_hook(note)
        before = float(world.params[0].detach()[-1])
        world.step()
        assert called == [before, float(world.params[0].detach()[-1])]
        assert called[0] != called[1]


AROUND: dict[str, Callable[[Stepped], Any]] = {
    "another lr": lambda w: w.optimizer.param_groups[0].update(lr=0.5),
    "a lr that is a tensor": lambda w: w.optimizer.param_groups[0].update(lr=torch.tensor(0.5)),
    "an int as lr": lambda w: w.optimizer.param_groups[1].update(lr=1),
    "maximize": lambda w: w.optimizer.param_groups[1].update(maximize=True),
    "groups replaced": lambda w: setattr(
        w.optimizer, "param_groups", [{**group, "lr": 0.25} for group in w.optimizer.param_groups]
    ),
    "a group more": lambda w: (
        w.params.append(torch.ones(3, requires_grad=True)), w.optimizer.add_param_group({"params": w.params[-1:]})
    ),
    "a parameter less": lambda w: w.optimizer.param_groups[0]["params"].clear(),
    "groups exchanged": lambda w: w.optimizer.param_groups.reverse(),
    "a parameter in another group": lambda w: w.optimizer.add_param_group(
        {"params": [w.optimizer.param_groups[0]["params"].pop()], "maximize": True}
    ),
    "state replaced": lambda w: setattr(
        w.optimizer, "state", type(w.optimizer.state)(dict, copy.copy(w.optimizer.state))
    ),
    "state of one lost": lambda w: w.optimizer.state.pop(w.params[0]),
    "state loaded": lambda w: w.optimizer.load_state_dict(copy.deepcopy(w.optimizer.state_dict())),
    "an overflow": lambda w: setattr(w.optimizer, "found_inf", torch.tensor(1.0)),
    "a subclass's hook that takes a closure": lambda w: w.optimizer.register_step_pre_hook(
        lambda *_: ((w.optimizer, lambda: None), {})
    ),
    "a scheduler": lambda w: setattr(w, "scheduler", S.ExponentialLR(w.optimizer, 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("change", AROUND)
@each_name
def test_changes_around_the_tensors(name: str, change: str) -> None:
    """After repeated steps, changes of groups, states or attributes act as in torch."""
    worlds = [Stepped(cls) for cls in (theirs(name), ours(name))]
    if change == "an overflow":  # torch's own steps ignore it
        params = [param.detach().clone() for param in worlds[1].params]
        AROUND[change](worlds[1])
        worlds[1].step()
        assert all(map(torch.equal, worlds[1].params, params))
        return
    for world in worlds:
        AROUND[change](world)
    for t in range(3):
        for world in worlds:
            world.step()
            if hasattr(world, "scheduler"):
                world.scheduler.step()
        assert_near(name, worlds[1].params, worlds[0].params, 50, f"step {t}")


@each_name
def test_inference_mode(name: str) -> None:
    """Steps work in it, also the first one, after which torch's own states are useless outside."""
    models, optimizers = of_networks(name)
    for t, inside in enumerate((True, True, False, True, False)):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, t).backward()
        optimizers[0].step()
        with torch.inference_mode(inside):
            optimizers[1].step()
        assert_models_near(name, models, 50, f"step {t}")
    assert_states_near(name, optimizers[1].state_dict(), optimizers[0].state_dict(), 1000)


# --------------------------------------------------------------------------------------------------------------- states


@each_name
def test_hooks_of_state_dict(name: str) -> None:
    """They get what ``state_dict`` returns, and may return something else instead."""
    found = []
    for cls in (theirs(name), ours(name)):
        param = torch.ones(2, requires_grad=True)
        param.grad = torch.ones(2)
        optimizer = cls([param])
        optimizer.step()
        optimizer.register_state_dict_post_hook(lambda _, state: {k: v.dtype for k, v in state["state"][0].items()})
        found.append(optimizer.state_dict())
    assert found[0] == found[1]


@each_dtype
@each_options
def test_states_go_from_torch_to_us_and_back(name: str, options: dict[str, Any], dtype: Any) -> None:
    """A run that changes the optimizer twice equals that of torch."""
    model, mine = network(dtype), network(dtype)
    reference = theirs(name)(model.parameters(), **options)
    optimizer = theirs(name)(mine.parameters(), **options)
    for part, cls in enumerate((theirs(name), ours(name), theirs(name), ours(name))):
        changed = cls(mine.parameters())
        changed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer = changed
        steps = range(4 * part, 4 * part + 4)
        for t, _ in zip(train(model, reference, steps), train(mine, optimizer, steps), strict=True):
            assert_near(name, mine.parameters(), model.parameters(), 2000, f"step {t}")
        assert_states_near(name, optimizer.state_dict(), reference.state_dict(), 100_000)


@each_name
def test_state_dict_is_that_of_torch_before_the_first_step(name: str) -> None:
    """It is empty for RMSprop and Rprop. Adagrad's sums exist from the start."""
    a, b = (cls(network().parameters()).state_dict() for cls in (theirs(name), ours(name)))
    assert list(a["state"]) == list(b["state"])
    assert_states_near(name, b, a, 0)


@each_name
def test_copies_and_pickles(name: str) -> None:
    """They go on like the original, with their models."""
    model = network()
    optimizer = ours(name)(model.parameters())
    list(train(model, optimizer))
    others = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    list(train(model, optimizer))
    for other, its in others:
        list(train(other, its))
        assert all(map(torch.equal, other.parameters(), model.parameters()))


@each_name
def test_old_state_dicts_of_torch(name: str) -> None:
    """Their groups lack newer options, and their steps are numbers."""
    model = network()
    reference = theirs(name)(model.parameters())
    list(train(model, reference))
    state = copy.deepcopy(reference.state_dict())
    for key in ("foreach", "maximize", "differentiable", "capturable", "fused"):
        state["param_groups"][0].pop(key, None)
    for entry in state["state"].values():
        entry["step"] = int(entry["step"])
    optimizer = ours(name)(model.parameters())
    optimizer.load_state_dict(state)
    list(train(model, optimizer, range(1)))
    assert all(float(entry["step"]) == STEPS + 1 for entry in optimizer.state.values())
    assert optimizer.param_groups[0].keys() - OURS.keys() == reference.param_groups[0].keys()


@each_name
def test_loading_frees_the_states_before(name: str) -> None:
    model = network()
    optimizer, other = (ours(name)(model.parameters()) for _ in range(2))
    list(train(model, optimizer))
    list(train(model, other))
    before = [weakref.ref(value) for entry in optimizer.state.values() for value in entry.values()]
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    gc.collect()
    assert not any(ref() is not None for ref in before)


def test_ctrl_c_while_a_group_is_added() -> None:
    """At the k-th line of it, for each k: the group is not there, or was checked."""
    pytest.importorskip("ml_dtypes")
    ends: list[bool] = []
    reached = True
    while reached:
        optimizer = ft.RMSprop([torch.ones(2, requires_grad=True)])
        late = {"params": [torch.ones(3, requires_grad=True)], "state_dtype": torch.bfloat16}
        reached = interrupted(len(ends), partial(optimizer.add_param_group, late))
        ends.append(len(optimizer.param_groups) == 2)
        assert not ends[-1] or optimizer.param_groups[1]["state_dtype"] == "bfloat16"
    assert {*ends[:-1]} == {False, True}, "no interrupt came after the group was added"


def test_signs_of_rprop() -> None:
    """``prev`` is the sign of the gradient, 0 for NaN and where the sign flipped. ``state_dict`` has it as a float."""
    param = torch.zeros(4, requires_grad=True)
    optimizer = ft.Rprop([param])
    param.grad = torch.tensor([2.5, -1e-40, 0.0, 1.0])
    optimizer.step()
    assert optimizer.state[param]["prev"].dtype == torch.int8
    assert optimizer.state[param]["prev"].tolist() == [1, -1, 0, 1]
    param.grad = torch.tensor([2.5, -1e-40, 0.0, -1.0])
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["prev"].tolist() == [1.0, -1.0, 0.0, 0.0]
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["prev"] = torch.tensor([torch.nan, -1e-40, -0.0, 7.0])
    optimizer.load_state_dict(saved)
    assert optimizer.state[param]["prev"].tolist() == [0, -1, 0, 1]


# --------------------------------------------------------------------------------------------------- tensors of 16 bits

each_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)
FULLEST: dict[str, dict[str, Any]] = {
    "RMSprop": {"momentum": 0.5, "weight_decay": 0.1},
    "Rprop": {"step_sizes": (1e-3, 0.02)},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.3},
}


def tensor_type(dtype: Any) -> Any:
    return getattr(torch, np.dtype(dtype).name)


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype is torch.bfloat16:
        return tensor.detach().view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.detach().numpy()


def stored_so(storage: Storage, **more: Any) -> dict[str, Any]:
    narrow = np.dtype(storage.state) == BFLOAT16
    return {**storage.class_options, "state_dtype": torch.bfloat16 if narrow else None, **more}


def parameters_of(storage: Storage, shapes: tuple[tuple[int, ...], ...] = ((30, 7), (), (11,))) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(tensor_type(storage.param)) for shape in shapes]
    made[0] = made[0].t()
    for param in made:
        param.requires_grad_()
        if storage.grad != storage.param:
            if not hasattr(param, "grad_dtype"):
                pytest.skip("in this torch a gradient has the parameter's type")
            param.grad_dtype = tensor_type(storage.grad)
    return made


def set_gradients(storage: Storage, params: list[Tensor], t: int) -> None:
    generator = torch.Generator().manual_seed(t)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(tensor_type(storage.grad))


def saved_and_loaded(name: str, params: list[Tensor], optimizer: Any, storage: Storage) -> tuple[list[Tensor], Any]:
    """Return what a file brings back, in an optimizer that was made with another seed and storage."""
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others = [param.detach().clone().requires_grad_() for param in saved["params"]]
    other = ours(name)(others, seed=1)
    other.load_state_dict(saved["optimizer"])
    for param in others if storage.grad != storage.param else ():
        param.grad_dtype = tensor_type(storage.grad)
    return others, other


@each_storage
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in FULLEST), ("RMSprop", {"centered": True}), *FULLEST.items()],
)
def test_storages_have_the_bits_of_the_reference(name: str, options: Any, storage: Storage) -> None:
    """Parameters and states are those of ``fusedstep``'s own, verified optimizer, also after they were saved and
    loaded."""
    params = parameters_of(storage)
    optimizer = ours(name)(params, **options, **stored_so(storage, seed=3))
    arrays = [array_of(param).copy(order="K") for param in params]
    plain = getattr(fs, name)(arrays, verify="every", seed=3, **DIALECT[name], **options, **storage.class_options)
    for t in range(4):
        if t == 2 and "centered" not in options:  # torch's state dicts have no variance: it is computed, and rounded
            params, optimizer = saved_and_loaded(name, params, optimizer, storage)
        set_gradients(storage, params, t)
        optimizer.step()
        plain.step([array_of(param.grad) for param in params])
        for i, (param, array) in enumerate(zip(params, arrays, strict=True)):
            assert not difference(array_of(param), array), f"parameter {i}, step {t}"
            held = {key.replace("sum", "square_sum").replace("prev", "prev_sign"): array_of(tensor)
                    for key, tensor in optimizer.state[param].items() if key != "step"}  # fmt: skip
            assert held.keys() == plain.state[str(i)].keys()
            for key, state in plain.state[str(i)].items():
                assert not difference(held[key], state), f"{key} of parameter {i}, step {t}"


@each_name
def test_a_master_is_a_float32_parameter(name: str) -> None:
    """Bit for bit, until somebody writes into it. Then ``sync_master`` drops the low halves."""
    high = torch.linspace(-1, 1, 500, dtype=torch.bfloat16).requires_grad_()
    wide = high.detach().float().requires_grad_()
    optimizer, reference = ours(name)([high], master=True), ours(name)([wide])
    for t in range(8):
        grad = torch.randn(500, generator=torch.Generator().manual_seed(t), dtype=torch.bfloat16)
        high.grad, wide.grad = grad, grad.float()
        optimizer.step()
        reference.step()
        both = fs.reference.join_master(array_of(high), array_of(optimizer.state[high]["param_low"]))
        assert not difference(both, array_of(wide)), f"step {t}"
        if t == 5:
            with torch.no_grad():
                high.fill_(0.5)
                wide.fill_(0.5)
            assert optimizer.state[high]["param_low"].any()
            optimizer.sync_master()
            assert not optimizer.state[high]["param_low"].any()


@each_name
def test_states_of_16_bits_from_torch_and_back(name: str) -> None:
    """torch's states have the parameter's type. They are widened here and rounded on the way back."""
    models = network(torch.bfloat16), network(torch.bfloat16)
    reference, optimizer = theirs(name)(models[0].parameters()), ours(name)(models[1].parameters())
    list(train(models[0], reference, range(2)))
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        for key, tensor in reference.state[a].items():
            mine = optimizer.state[b][key]
            assert mine.dtype == (torch.int8 if key == "prev" else torch.float32)
            assert torch.equal(mine.float(), tensor.float().sign() if key == "prev" else tensor.float())
    list(train(models[1], optimizer, range(2)))
    reference.load_state_dict(optimizer.state_dict())
    list(train(models[0], reference, range(2)))


@each_name
def test_storage_that_changes_between_steps(name: str) -> None:
    """Refuse states of another type than the group's. ``load_state_dict`` converts them, also to a master."""
    param = torch.ones(40, dtype=torch.bfloat16, requires_grad=True)
    optimizer = ours(name)([param])

    def step() -> None:
        param.grad = torch.linspace(0.1, 1, 40, dtype=torch.bfloat16)
        optimizer.step()

    step()
    for key, value, error in (("state_dtype", torch.bfloat16, TypeError), ("master", True, ValueError)):
        optimizer.param_groups[0][key] = value
        before = param.detach().clone()
        with pytest.raises(error, match=r"load_state_dict\(optimizer.state_dict"):
            step()
        assert torch.equal(param, before)
        optimizer.load_state_dict(optimizer.state_dict())
        step()
    optimizer.param_groups[0]["rounding"] = "up"
    with pytest.raises(ValueError, match=r"rounding.*'up'"):
        step()
    states = {key: state.dtype for key, state in optimizer.state[param].items() if key not in ("step", "prev")}
    assert states.pop("param_low") == torch.uint16
    assert set(states.values()) == {torch.bfloat16}


BAD_STORAGE: tuple[tuple[Any, dict[str, Any], type[Exception], str], ...] = (
    (torch.float64, {"state_dtype": torch.bfloat16}, ValueError, "state_dtype.*none.*'w'.*float64.*bfloat16"),
    (torch.float32, {"state_dtype": torch.float16}, TypeError, "state_dtype.*bfloat16.*torch.float16"),
    (torch.float32, {"master": True}, ValueError, "master.*bfloat16.*'w'.*float32"),
    (torch.bfloat16, {"master": 1}, TypeError, "master.*True or False.*1"),
    (torch.bfloat16, {"rounding": None}, ValueError, "rounding.*stochastic.*None"),
    (torch.bfloat16, {"rounding": "up"}, ValueError, "rounding.*stochastic.*'up'"),
    (torch.bfloat16, {"seed": -1}, ValueError, "seed.*-1"),
    (torch.bfloat16, {"seed": 0.5}, TypeError, "seed.*0.5"),
)


@pytest.mark.parametrize(("dtype", "options", "error", "message"), BAD_STORAGE, ids=str)
@each_name
def test_storage_that_does_not_exist(name: str, dtype: Any, options: Any, error: Any, message: str) -> None:
    """Refuse it in the constructor and in an added group. All groups have one seed."""
    with pytest.raises(error, match=message):
        ours(name)([("w", torch.ones(2, dtype=dtype))], **options)
    optimizer = ours(name)([("b", torch.ones(2))])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [("w", torch.ones(2, dtype=dtype))], **options})
    with pytest.raises(ValueError, match=r"seed.*0.*1"):
        optimizer.add_param_group({"params": [("c", torch.ones(2))], "seed": 1})
    assert len(optimizer.param_groups) == 1


def test_a_gradient_wider_than_the_computation() -> None:
    """Refuse it by name, and write nothing."""
    param = torch.ones(3, requires_grad=True)
    if not hasattr(param, "grad_dtype"):
        pytest.skip("in this torch a gradient has the parameter's type")
    param.grad_dtype = torch.float64
    param.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"gradient of parameter '0'.*float32.*float64"):
        ft.RMSprop([param]).step()
    assert param.eq(1).all()


def test_bfloat16_needs_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        ft.RMSprop([torch.ones(2, dtype=torch.bfloat16)])
    ft.RMSprop([torch.ones(2, dtype=torch.float16)])


# --------------------------------------------------------------------------------------------------------------- memory


def places(optimizer: Any) -> list[int]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = [state for entry in optimizer.state.values() for name, state in entry.items() if name != "step"]
    return [tensor.data_ptr() for tensor in (*params, *states)]


@each_name
def test_nothing_is_copied(name: str) -> None:
    """Parameters and states stay in place. Gradients are not moved, written or held."""
    model = network()
    optimizer = ours(name)(model.parameters(), **({"momentum": 0.5, "centered": True} if name == "RMSprop" else {}))
    list(train(model, optimizer, range(1)))
    before = places(optimizer)
    for t in range(3):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        grads = [param.grad for param in model.parameters()]
        values = [(grad.data_ptr(), grad.clone()) for grad in grads]
        optimizer.step()
        for grad, (place, value) in zip(grads, values, strict=True):
            assert grad.data_ptr() == place
            assert torch.equal(grad, value)
    assert places(optimizer) == before
    released = [weakref.ref(grad) for grad in grads]
    del grads, grad
    optimizer.zero_grad()
    gc.collect()
    assert not any(ref() is not None for ref in released)


LAYOUTS: dict[str, Callable[[Any], Tensor]] = {
    "transposed": lambda dtype: torch.randn(4, 6, dtype=dtype).t(),
    "sliced": lambda dtype: torch.randn(6, 9, dtype=dtype)[:, 1:9:2],
    "every other row": lambda dtype: torch.randn(12, 4, dtype=dtype)[::2],
    "channels last": lambda dtype: torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last),
    "permuted": lambda dtype: torch.randn(2, 3, 4, dtype=dtype).permute(2, 0, 1),
    "empty": lambda dtype: torch.randn(0, 3, dtype=dtype),
    "a number": lambda dtype: torch.randn((), dtype=dtype),
}


@pytest.mark.parametrize("like_param", [True, False], ids=("gradient like the parameter", "gradient contiguous"))
@pytest.mark.parametrize("layout", LAYOUTS)
@each_dtype
@each_name
def test_layouts(name: str, dtype: Any, layout: str, like_param: bool) -> None:
    """Update tensors that are not contiguous in place, and nothing beside them."""
    torch.manual_seed(0)
    mine = LAYOUTS[layout](dtype)
    reference = mine.clone().requires_grad_()
    whole = mine._base if mine._base is not None else mine
    mine.requires_grad_()
    optimizers = ours(name)([mine]), theirs(name)([reference])
    place = mine.data_ptr()
    outside = torch.ones_like(whole, dtype=torch.bool)
    outside.as_strided(mine.shape, mine.stride(), mine.storage_offset()).fill_(False)
    beside = whole.detach()[outside]
    for t in range(4):
        grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(t), dtype=dtype)
        mine.grad = torch.empty_like(mine.detach()).copy_(grad) if like_param else grad
        reference.grad = grad
        for optimizer in optimizers:
            optimizer.step()
        assert_near(name, [mine] if mine.numel() else [], [reference] if mine.numel() else [], 50, f"step {t}")
    assert mine.data_ptr() == place
    assert torch.equal(whole.detach()[outside], beside)


MOVES: dict[str, Callable[[Any], None]] = {
    "data replaced": lambda param: setattr(param, "data", param.detach().clone()),
    "data transposed": lambda param: setattr(param, "data", param.detach().t().contiguous().t()),
    "data transposed in place": lambda param: setattr(param, "data", param.detach().t()),
    "data of another shape": lambda param: setattr(param, "data", param.detach()[:3, :2]),
    "data of another dtype": lambda param: setattr(param, "data", param.detach().double()),
    "shared memory": lambda param: param.share_memory_(),
    "storage replaced": lambda param: torch.no_grad()(param.set_)(param.detach().clone()),
    "tensors swapped": lambda param: torch.utils.swap_tensors(param, param.detach().clone().requires_grad_()),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", ["RMSprop", "Adagrad"])
def test_memory_that_moves(name: str, move: str) -> None:
    """Update a parameter whose memory was replaced at its new place. The old memory stays as it is."""
    torch.manual_seed(1)
    params, optimizers = of_one_value(torch.randn(4, 4), name)
    old = params[1].detach()
    for t in range(6):
        if t == 3:
            old.copy_(params[0].detach())
            before = old.clone()
            for param, optimizer in zip(params, optimizers, strict=True):
                param.grad = None
                MOVES[move](param)
                for key in optimizer.state[param]:
                    if key != "step":  # the caller chooses their shape and type, in torch as well
                        optimizer.state[param][key] = torch.zeros_like(param)
        for param in params:
            grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(t))
            param.grad = grad[: param.shape[0], : param.shape[1]].to(param.dtype)
        for optimizer in optimizers:
            optimizer.step()
        assert_near(name, params[1:], params[:1], 50, f"step {t}")
    if "replaced" in move:
        assert torch.equal(old, before)


def lazy_negative(values: Tensor) -> Tensor:
    """Return a tensor with these values, whose memory has the opposite sign."""
    made = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert made.is_neg()
    return made


CHANGES: dict[str, tuple[Callable[[Tensor, dict[str, Any], str], Any], type[Exception] | None, str]] = {
    "parameter converted": (lambda p, entry, key: setattr(p, "data", p.data.double()), TypeError, "load_state_dict"),
    "state converted": (lambda p, entry, key: entry.update({key: entry[key].double()}), TypeError, "load_state_dict"),
    "state of another shape": (lambda p, entry, key: entry.update({key: entry[key][:1].clone()}), ValueError, "shape"),
    "state transposed": (lambda p, entry, key: entry[key].t_(), None, ""),
    "state written": (lambda p, entry, key: entry[key].fill_(0.5), None, ""),
    "state and step replaced": (
        lambda p, entry, key: entry.update({key: torch.full((4, 4), 0.25), "step": torch.tensor(20.0)}), None, ""
    ),
    "state's data replaced": (lambda p, entry, key: setattr(entry[key], "data", torch.full((4, 4), 0.125)), None, ""),
    "state deleted": (lambda p, entry, key: entry.clear(), None, ""),
    "state read as integers": (
        lambda p, entry, key: setattr(entry[key], "data", entry[key].data.view(torch.int32)), TypeError, "int32"
    ),
    "parameter read as integers": (
        lambda p, entry, key: setattr(p.requires_grad_(False), "data", p.data.view(torch.int32)), TypeError, "int32"
    ),
    "state a lazy negative": (
        lambda p, entry, key: entry.update({key: lazy_negative(entry[key])}), ValueError, "lazy negative"
    ),
    "parameter a lazy negative": (lambda p, entry, key: setattr(p, "data", lazy_negative(p.data)), ValueError, "lazy"),
    "gradient a lazy negative": (lambda p, entry, key: setattr(p, "grad", lazy_negative(p.grad)), None, ""),
    "gradient is the parameter": (lambda p, entry, key: setattr(p, "grad", p.data), ValueError, "shares memory"),
    "gradient is a state": (lambda p, entry, key: setattr(p, "grad", entry[key]), ValueError, "shares memory"),
    "gradient's storage freed": (lambda p, entry, key: p.grad.untyped_storage().resize_(0), ValueError, "resized to 0"),
    "gradient's storage grown": (lambda p, entry, key: p.grad.untyped_storage().resize_(256), None, ""),
    "gradient expanded": (lambda p, entry, key: setattr(p, "grad", torch.ones(1).expand(4, 4)), None, ""),
    "steps written": (lambda p, entry, key: entry["step"].fill_(20), None, ""),
    "steps written unseen by autograd": (lambda p, entry, key: entry["step"].data.fill_(20), None, ""),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@each_name
def test_changes_between_steps(name: str, change: str) -> None:
    """The next step equals that of torch, or is refused and writes nothing."""
    make, error, message = CHANGES[change]
    options = {"lr_decay": 0.5} if name == "Adagrad" else {}
    params, optimizers = of_one_value(torch.linspace(1, 2, 16).view(4, 4), name, **options)
    for t in range(4):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.linspace(-1, 1, 16).view(4, 4) + t
            if t == 2 and (error is None or optimizer is optimizers[1]):
                make(param, optimizer.state[param], KEY[name])
            if t == 2 and error is not None:
                continue
            optimizer.step()
        if t == 2 and error is not None:
            entry = optimizer.state[params[1]]
            before = [tensor.clone() for tensor in (params[1], *entry.values())]
            with pytest.raises(error, match=message):
                optimizers[1].step()
            assert all(map(torch.equal, (params[1], *entry.values()), before))
            return
        assert_near(name, params[1:], params[:1], 20, f"step {t}")
        assert_states_near(name, optimizers[1].state_dict(), optimizers[0].state_dict(), 20)


@each_name
def test_a_model_that_is_converted(name: str) -> None:
    """``load_state_dict(state_dict())``, which the error suggests, goes on in the new type, and back."""
    models, optimizers = of_networks(name)
    for t in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            if t in (2, 4):
                model.to(torch.float64 if t == 2 else torch.float32)
                optimizer.load_state_dict(optimizer.state_dict())
            list(train(model, optimizer, range(t, t + 1)))
        found, expected = ([param.float() for param in model.parameters()] for model in reversed(models))
        assert_near(name, found, expected, 2000, f"step {t}")


@each_name
def test_storage_in_use_is_not_resized(name: str) -> None:
    """The storage of a parameter or a state can't be freed while the optimizer uses it."""
    param = torch.ones(4, requires_grad=True)
    param.grad = torch.ones(4)
    optimizer = ours(name)([param])
    optimizer.step()
    for tensor in (param, *optimizer.state[param].values()):
        with pytest.raises(RuntimeError, match="not resizable"):
            tensor.untyped_storage().resize_(0)


@each_name
def test_default_dtype_of_float64(name: str) -> None:
    """A run under ``torch.set_default_dtype(torch.float64)`` has the types and values of torch."""
    try:
        torch.set_default_dtype(torch.float64)
        for dtype in DTYPES:
            params, optimizers = of_one_value(torch.ones(3, dtype=dtype), name)
            for t in range(3):
                for param, optimizer in zip(params, optimizers, strict=True):
                    param.grad = torch.linspace(-1, 1, 3, dtype=dtype) + t
                    optimizer.step()
            assert_near(name, params[1:], params[:1], 20)
            assert_states_near(name, optimizers[1].state_dict(), optimizers[0].state_dict(), 20)
    finally:
        torch.set_default_dtype(torch.float32)


USES: dict[str, Callable[[Any], Any]] = {
    "step": lambda optimizer: optimizer.step(),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "load_state_dict": lambda optimizer: optimizer.load_state_dict(ft.RMSprop([torch.ones(2)]).state_dict()),
    "add_param_group": lambda optimizer: optimizer.add_param_group({"params": [torch.ones(2)]}),
    "copy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("use", USES)
def test_another_thread_in_one_optimizer(use: str) -> None:
    """While one thread takes a state dict, refuse each use by another. Afterwards it works."""
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    optimizer = ft.RMSprop([param])
    optimizer.step()
    errors: list[BaseException | None] = []

    def elsewhere(_: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(USES[use], optimizer).exception())

    handle = optimizer.register_state_dict_pre_hook(elsewhere)
    before = param.detach().clone()
    optimizer.state_dict()
    assert isinstance(errors[0], RuntimeError), errors
    assert "another thread" in str(errors[0])
    assert torch.equal(param, before)
    handle.remove()
    USES[use](optimizer)


@each_name
def test_three_threads_lose_no_step(name: str) -> None:
    """Each of their steps counts or raises."""
    params = [torch.zeros(50_000, requires_grad=True) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(50_000)
    optimizer = ours(name)(params)

    def steps() -> int:
        done = 0
        for _ in range(40):
            with contextlib.suppress(RuntimeError):
                optimizer.step()
                done += 1
        return done

    with ThreadPoolExecutor(3) as pool:
        done = sum(future.result() for future in [pool.submit(steps) for _ in range(3)])
    assert all(float(optimizer.state[param]["step"]) == done for param in params)


def test_shared_sums() -> None:
    """``Adagrad.share_memory`` moves the sums; the next step finds them."""
    models, optimizers = of_networks("Adagrad")
    for t, _ in zip(*map(train, models, optimizers), strict=True):
        if t == 3:
            optimizers[1].share_memory()
            assert all(entry["sum"].is_shared() for entry in optimizers[1].state.values())
        assert_models_near("Adagrad", models, 100)


@each_name
def test_some_without_gradients(name: str) -> None:
    """They have no state before their first gradient, and count no step."""
    pairs = []
    for cls in (theirs(name), ours(name)):
        params = [torch.ones(3, requires_grad=True) for _ in range(3)]
        pairs.append((params, cls(params)))
    pairs[1][1].step()
    for t, with_grad in enumerate(([0], [0, 2], [], [1], [0, 1, 2], [2])):
        for params, optimizer in pairs:
            for i, param in enumerate(params):
                param.grad = torch.linspace(-1, 1, 3) * (t + 1) if i in with_grad else None
            versions = [param._version for param in params]
            optimizer.step()
            assert [i for i, v in enumerate(versions) if params[i]._version != v] == with_grad
        assert_near(name, pairs[1][0], pairs[0][0], 50)
        states = [optimizer.state_dict() for _, optimizer in pairs]
        assert states[0]["state"].keys() == states[1]["state"].keys()
        assert_states_near(name, states[1] | {"state": dict(sorted(states[1]["state"].items()))},
                           states[0] | {"state": dict(sorted(states[0]["state"].items()))}, 50)  # fmt: skip


@each_name
def test_a_step_is_a_change_in_place_to_autograd(name: str) -> None:
    """The version of a parameter counts up, so that a graph that saved it before the step refuses to go backward."""
    for param, optimizer in zip(*of_one_value(torch.ones(3), name), strict=True):
        (param**2).sum().backward()
        optimizer.step()  # its states exist already
        loss = (param**2).sum()
        version = param._version
        optimizer.step()
        assert param._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_name
def test_gradients_in_a_graph(name: str) -> None:
    """Use the values of gradients made with ``create_graph=True``."""
    params, optimizers = of_one_value(torch.linspace(1, 2, 4), name)
    for param, optimizer in zip(params, optimizers, strict=True):
        (param.grad,) = torch.autograd.grad((param**3).sum(), param, create_graph=True)
        assert param.grad.requires_grad
        optimizer.step()
    assert_near(name, params[1:], params[:1], 4)


# -------------------------------------------------------------------------------------------------------------- scaling


@each_name
def test_grad_scaler(name: str) -> None:
    """A ``GradScaler`` leaves unscaling and skipping to the step, which leaves gradients as they are. A run with an
    overflow equals that of torch."""
    models, optimizers = of_networks(name)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4) for _ in models]
    for t in range(10):
        for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, t)).backward()
            if t == 5:
                model[0].weight.grad[0, 0] = torch.inf
            if t == 7:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            before = [param.detach().clone() for param in model.parameters()]
            grads = [param.grad.clone() for param in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            assert all(map(torch.equal, before, model.parameters())) == (t == 5)
            if optimizer is optimizers[1]:
                assert all(map(torch.equal, grads, (param.grad for param in model.parameters())))
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert_models_near(name, models, 500, f"step {t}")
        assert not hasattr(optimizers[1], "grad_scale")
    assert_states_near(name, optimizers[1].state_dict(), optimizers[0].state_dict(), 100_000)


# --------------------------------------------------------------------------------------------------------------- errors

BAD_PARAMS: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: torch.ones(2, dtype=torch.complex64), TypeError, "'0'.*complex64"),
    (lambda: torch.ones(2, dtype=torch.int64), TypeError, "'0'.*int64"),
    (lambda: torch.ones(2).to_sparse(), ValueError, "'0'.*dense.*sparse"),
    (lambda: torch.ones(2, device="meta"), ValueError, "'0'.*CPU.*meta"),
    (lambda: torch.ones(1).expand(2**44), ValueError, "'0'.*share memory"),
    (lambda: torch.ones(4).as_strided((3, 2), (1, 1)), ValueError, "'0'.*share memory"),
)


@pytest.mark.parametrize(("make", "error", "message"), BAD_PARAMS, ids=lambda bad: getattr(bad, "__name__", None))
@each_name
def test_parameters_that_cannot_be_updated(name: str, make: Any, error: Any, message: str) -> None:
    """Refuse types and devices without kernels in the constructor and in an added group, by name."""
    with pytest.raises(error, match=message):
        ours(name)([make()])
    optimizer = ours(name)([torch.ones(2)])
    with pytest.raises(error, match=message.replace("0", "1", 1)):
        optimizer.add_param_group({"params": [make()]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(error, match=r"'layer\.w'"):
        ours(name)([("layer.w", make())])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@each_name
def test_sparse_gradients(name: str) -> None:
    """Those of an embedding are sums of rows, and torch's Adagrad agrees. Rprop, weight decay and two sparse dimensions
    are refused by the name of the parameter, and nothing is written."""
    embedding, twin = torch.nn.Embedding(6, 3, sparse=True, dtype=torch.float64), torch.nn.Embedding(6, 3, sparse=True)
    twin.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    good = torch.ones(3, requires_grad=True)
    good.grad = torch.ones(3)
    takes = name != "Rprop"
    options: dict[str, Any] = {} if name == "Rprop" else {"weight_decay": 0.1}
    for wrong in (options, {}):
        optimizer = ours(name)([("good", good), *embedding.named_parameters()], **wrong)
        embedding(torch.tensor([1, 2])).sum().backward()
        if wrong or not takes:
            with pytest.raises(
                (RuntimeError, ValueError), match=r"gradient of parameter 'weight'.*(decay|gradient of 0)"
            ):
                optimizer.step()
    assert (good.eq(1).all(), good._version) == (True, 0)
    embedding.weight.grad = torch.eye(3, dtype=torch.float64).repeat(2, 1).to_sparse()
    with pytest.raises(ValueError, match="one sparse dimension"):
        optimizer.step()
    if not takes:
        return
    dense = [torch.nn.Parameter(embedding.weight.detach().clone()) for _ in range(2)]
    expected = [ours(name)(dense[:1]), theirs(name)(dense[1:])]
    optimizer = ours(name)(embedding.parameters())
    other = theirs(name)(twin.parameters())
    for t in range(4):
        words = torch.tensor([1, 4, 1, t])
        for model in (embedding, twin):
            model.weight.grad = None
            (model(words) ** 2).sum().backward()
        grad = embedding.weight.grad.to_dense()
        optimizer.step()
        for each, param in zip(expected, dense, strict=True):
            param.grad = grad
            each.step()
        if name == "Adagrad":
            other.step()
            assert torch.equal(embedding.weight, dense[0])
            assert torch.allclose(embedding.weight, twin.weight, rtol=1e-13, atol=0)
    assert torch.equal(embedding.weight[5], twin.weight[5])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("storage", [each for each in STORAGES if each.param == each.grad == BFLOAT16], ids=str)
@pytest.mark.parametrize("name", ["RMSprop", "Adagrad"])
def test_sparse_gradients_of_bfloat16(name: str, storage: Storage) -> None:
    """They have the bits of rows in ``fusedstep``'s own optimizer with the same storage."""
    embedding = torch.nn.Embedding(40, 5, sparse=True, dtype=torch.bfloat16)
    (weight,) = embedding.parameters()
    optimizer = ours(name)([("emb", weight)], lr=0.1, **stored_so(storage))
    table = array_of(weight).copy()
    dialect = {"alpha": 0.99} if name == "RMSprop" else {}
    plain = getattr(fs, name)({"emb": table}, lr=0.1, verify="every", **dialect, **storage.class_options)
    for t in range(4):
        weight.grad = None
        (embedding(torch.tensor([1, 4, 1, 30 + t])).float() ** 2).sum().backward()
        optimizer.step()
        plain.step({"emb": fs.Rows(weight.grad._indices()[0].numpy(), array_of(weight.grad._values()))})
        assert not difference(array_of(weight), table), f"step {t}"


@each_name
def test_parameters_that_share_memory(name: str) -> None:
    """Refuse overlapping parameters, and accept adjacent ones."""
    flat = torch.ones(8)
    views = [flat[:4], flat[4:], flat[2:6]]
    for view in views:
        view.requires_grad_()
        view.grad = torch.ones(4)
    ours(name)(views[:2]).step()
    before = flat.clone()
    with pytest.raises(ValueError, match="parameter '1' shares memory with parameter '0'"):
        ours(name)([views[0], views[2]]).step()
    assert torch.equal(flat, before)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "RMSprop": (
        {"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -1.0}, {"momentum": -0.1}, {"alpha": -0.1}, {"alpha": 1.5},
        {"lr": float("nan")}, {"lr": torch.ones(2)}, {"capturable": True}, {"differentiable": True},
    ),
    "Rprop": (
        {"lr": -1.0}, {"etas": (1.0, 0.5)}, {"step_sizes": (1.0, 0.5)}, {"capturable": True}, {"differentiable": True},
    ),
    "Adagrad": (
        {"lr": -1.0}, {"lr_decay": -0.5}, {"weight_decay": -1.0}, {"initial_accumulator_value": -1.0}, {"eps": -1.0},
        {"differentiable": True}, {"lr": torch.ones(2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in NAMES for options in BAD_OPTIONS[name]], ids=str
)
def test_options_out_of_range(name: str, options: dict[str, Any]) -> None:
    """Refuse them by name in the constructor, in a group, in a loaded state, which then changes nothing, and in the
    first or a later step, if they came through ``param_groups``."""
    ((option, bad),) = options.items()
    with pytest.raises(ValueError, match=option):
        ours(name)([torch.ones(2)], **options)
    if option == "initial_accumulator_value":
        return
    with pytest.raises(ValueError, match=option):
        ours(name)([{"params": [torch.ones(2)], **options}])
    optimizer = ours(name)([torch.ones(2)], lr=0.25)
    saved = copy.deepcopy(ours(name)([torch.ones(2)]).state_dict())
    saved["param_groups"][0].update(options)
    with pytest.raises(ValueError, match=option):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25

    param = torch.ones(2)
    param.grad = torch.ones(2)
    optimizer = ours(name)([{"params": [torch.ones(2)]}, {"params": [param]}])
    group = optimizer.param_groups[1]
    for _ in range(2):
        good, before = group.get(option), param.clone()
        group[option] = bad
        for _ in range(2):
            with pytest.raises(ValueError, match=option):
                optimizer.step()
        assert torch.equal(param, before)
        group[option] = good
        optimizer.step()
        assert not torch.equal(param, before)


@each_name
def test_what_torchs_own_tests_refuse(name: str) -> None:
    """Inputs for which torch's tests expect an error or a warning have one of the same type here."""
    rows = of_torchs_own_tests(f"optim_error_inputs_func_{name.lower()}")
    assert len(rows) >= 7
    for row in rows:
        given = row.optimizer_error_input
        params = [torch.nn.Parameter(torch.ones(2))] if given.params is None else given.params
        for cls in (theirs(name), ours(name)):
            with pytest.raises(row.error_type):
                cls(params, **given.kwargs)


def test_which_implementation() -> None:
    """Options that choose among torch's implementations make no difference. Both at once are refused, as in torch."""
    for name, options in itertools.product(NAMES, ({"foreach": True}, {"foreach": False}, {"foreach": None})):
        ours(name)([torch.ones(2)], **options)
    for fused in (True, False, None):
        ft.Adagrad([torch.ones(2)], fused=fused)
    with pytest.raises(TypeError, match=r"foreach.*'yes'"):
        ft.RMSprop([torch.ones(2)], foreach="yes")
    with pytest.raises(RuntimeError, match=r"foreach.*fused"):
        ft.Adagrad([torch.ones(2)], foreach=True, fused=True)
    optimizer = ft.Adagrad([torch.ones(2)])
    optimizer.param_groups[0].update(foreach=True, fused=True)
    with pytest.raises(RuntimeError, match=r"foreach.*fused"):
        optimizer.step()


@each_name
def test_misspelt_arguments(name: str) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"'learning_rate' \(did you mean 'lr'\?\)"):
        ours(name)([param], learning_rate=0.1)
    with pytest.raises(TypeError, match=r"'closur' \(did you mean 'closure'\?\)"):
        ours(name)([param]).step(closur=None)


@pytest.mark.slow
def test_zero_redundancy_optimizer(tmp_path: Path) -> None:
    """torch's own class splits the states over two processes, with the bits and the state dict of one process."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(2):
            command = [sys.executable, Path(__file__).with_name("zero.py"), str(rank), tmp_path / "meet"]
            ranks.append(stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
            stack.callback(ranks[-1].kill)
        for each in ranks:
            _, errors = each.communicate(timeout=300)
            assert each.returncode == 0, errors
