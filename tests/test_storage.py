"""16-bit arrays: rounding, its noise, master parameters, and optimizers that use them.

``test_exactness.py`` tests that each update has the bits of the reference, in every storage.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from checks import Mirror, assert_same, difference, memory_of, refused
from registry import BFLOAT16, FULLEST_OF_RULE, ISAS, STORAGES, Case, loss

FULLEST = tuple(case.as_stored(storage) for case in FULLEST_OF_RULE for storage in STORAGES)
SHAPES: dict[str, tuple[int, ...]] = {"w": (3, 5), "layers.0.b": (), "long": (2100,), "empty": (0, 2)}


def draw(case: Case, rng: np.random.Generator, scale: float = 1.0) -> dict[str, Any]:
    assert case.storage is not None
    dtype = case.storage.param if scale == 1.0 else case.storage.grad
    return {
        name: np.asarray(scale * rng.standard_normal(shape), np.float32).astype(dtype) for name, shape in SHAPES.items()
    }


def steps() -> list[dict[str, Any]]:
    return [
        {}, {"grad_scale": 4.0}, {"clip_norm": 0.5}, {"clip_norm_each": 0.5}, {"clip_value": 0.3, "nonfinite": "skip"},
        {"zero_grads": True},
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the noise


def test_the_key() -> None:
    """The key is made by published hashes, and differs for other seeds, steps and names."""

    def mix64(z: int) -> int:
        """The first number of splitmix64 from the state ``z``, as its authors published it."""
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    def fnv1a(name: str) -> int:
        h = 14695981039346656037
        for byte in name.encode():
            h = ((h ^ byte) * 1099511628211) % 2**64
        return h

    assert mix64(0) == 0xE220A8397B1DCDAF  # splitmix64.c by Vigna, from seed 0
    assert mix64(1234567) == 6457827717110365317  # Rosetta Code, Pseudo-random numbers/Splitmix64
    assert fnv1a("a") == 0xAF63DC4C8601EC8C  # Fowler, Noll & Vo, test vectors of 64 bits
    assert fnv1a("foobar") == 0x85944171F73967E8
    some = list(itertools.product((0, 1, 2**64 - 1), (1, 2, 2**53), ("0", "w", "layers.0.w", "größe")))
    keys = [fs.noise_key(*each) for each in some]
    assert keys == [mix64(mix64(mix64(seed) ^ step) ^ fnv1a(name)) for seed, step, name in some]
    assert keys == [fs.reference.noise_key(*each) for each in some]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("isa", ISAS)
def test_the_noise_of_the_kernels_is_the_published_one(isa: str) -> None:
    """A sum between two bfloat16 is rounded up if the noise and the dropped fraction carry."""
    key, n = 123456789, 5000
    param, grad, state = np.zeros(n, np.float32), np.full(n, 0.0625, np.float32), np.ones(n, BFLOAT16)
    with fs.use_isa(isa):
        fs.adagrad_(param, grad, state, lr=0.0, key=key)
    fraction = 0x8000  # of 1 + 2^-8: half of a unit
    up = (fs.reference.noise(key, np.arange(n)) >> 16) + fraction >= 2**16
    assert np.array_equal(state > 1, up)
    assert 0.45 < up.mean() < 0.55


def test_the_noise_is_random() -> None:
    """Both halves are uniform and independent of neighbours, steps and each other: chi-squared within 5 deviations."""
    n = 2**18
    halves = [
        half
        for step in (1, 2)
        for draws in [fs.reference.noise(fs.noise_key(0, step, "w"), np.arange(n))]
        for half in (draws & 0xFFFF, draws >> 16)
    ]
    for half in halves:
        counts = np.bincount(half >> 8, minlength=256)
        chi = ((counts - n / 256) ** 2 / (n / 256)).sum()
        assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
    pairs = [(half[:-1], half[1:]) for half in halves] + list(itertools.combinations(halves, 2))
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(n)


# ------------------------------------------------------------------------------------------------------------- rounding


def test_each_code_encodes_to_itself() -> None:
    """Also 0, whatever the noise."""
    codes = np.arange(2**16, dtype=np.uint16)
    for dtype, encode in ((BFLOAT16, fs.reference.to_bfloat16), (np.dtype(np.float16), fs.reference.to_float16)):
        values = codes.view(dtype)
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(values)
        for drawn in (None, np.uint32(0), np.uint32(0x8000), np.uint32(0xFFFF)):
            bits = None if drawn is None else np.full(codes.size, drawn)
            with np.errstate(invalid="ignore"):
                found = encode(values.astype(np.float32), bits)
            assert np.array_equal(found.view(np.uint16)[finite], codes[finite])
            assert not difference(found[~finite], values[~finite])


@pytest.mark.parametrize("x", [1.0039, -3.1415927, 65519.0, 1e-7, -2.3e-39, 3.0e38])
def test_stochastic_rounding_is_right_in_the_mean(x: float) -> None:
    """The mean of a million roundings is within 5 deviations, and each result is one of the two neighbours."""
    n = 1_000_000
    draws = fs.reference.noise(fs.noise_key(1, 1, "w"), np.arange(n))
    value = np.full(n, x, np.float32)
    for encode in (fs.reference.to_bfloat16, fs.reference.to_float16):
        if encode is fs.reference.to_float16 and not 2.0**-30 < abs(x) < 65504:
            continue
        found = encode(value, draws & 0xFFFF).astype(np.float64)
        neighbours = np.unique(found)
        assert 1 <= neighbours.size <= 2
        unit = neighbours[-1] - neighbours[0]
        assert abs(found.mean() - float(np.float32(x))) <= 5 * unit / 2 / math.sqrt(n) + unit * 2**-16


def test_the_halves_of_a_master() -> None:
    """Any float32 has its two halves and comes back from them. The high half is the nearest; any NaN stays a NaN."""
    rng = np.random.default_rng(0)
    words = np.concatenate(
        [rng.integers(0, 2**32, 10**6, np.uint32), np.arange(-9, 9).astype(np.int32).view(np.uint32)]
    )
    x = words.view(np.float32)
    high, low = fs.reference.split_master(x)
    assert not difference(fs.reference.join_master(high, low), x)
    ordinary = np.isfinite(x) & np.isfinite(high)
    wide = high.astype(np.float64)[ordinary]
    units = np.abs(np.spacing(high[ordinary]).astype(np.float64))
    assert (np.abs(wide - x[ordinary]) <= units / 2).all()


# ---------------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("case", FULLEST, ids=str)
def test_classes_equal_the_reference(case: Case) -> None:
    """Compare every bit of parameters and states, with the options of a step, seeds, and names in any order. Every
    third one is verified, too, by the same reference."""
    rng = np.random.default_rng(3)
    params = draw(case, rng)
    mirror = Mirror(case, params, {name: {"seed": 7} for name in params})
    named = {name: params[name].copy() for name in reversed(params)}
    optimizer = case.new(named, seed=7, verify="never" if FULLEST.index(case) % 3 else "every")
    for t, options in enumerate(steps(), 1):
        grads = draw(case, rng, 0.1)
        given = {name: grads[name].copy() for name in named}
        if t == 2:
            grads["w"] = given["w"] = None
        optimizer.step(given, loss=loss(t), **options)
        mirror.step(grads, loss=loss(t), **options)
        held_as = {state.name: state.held_as for state in case.states}
        for name, arrays in mirror.arrays.items():
            expected = {held_as.get(key, key): array for key, array in arrays.items()}
            assert_same({"param": named[name], **optimizer.state[name]}, expected, f"{case}, step {t}, {name}")


@pytest.mark.parametrize("case", FULLEST_OF_RULE, ids=str)
def test_a_master_is_float32(case: Case) -> None:
    """Parameter and low halves together are float32 training, bit for bit."""
    rng = np.random.default_rng(6)
    wide = rng.standard_normal(1000).astype(np.float32).astype(BFLOAT16).astype(np.float32)
    high = wide.astype(BFLOAT16)
    ours, theirs = case.new(high, master=True), case.new(wide)
    for t in range(1, 20):
        grad = rng.standard_normal(1000).astype(np.float32)
        ours.step(grad, loss=loss(t))
        theirs.step(grad, loss=loss(t))
        both = fs.reference.join_master(high, ours.state["0"]["param_low"])
        assert not difference(both, wide), f"{case}, step {t}"


def test_sync_master() -> None:
    """After a write, drop the low halves of one parameter or of all. Other names are refused."""
    params = {name: np.ones(5, BFLOAT16) for name in ("a", "b")}
    optimizer = fs.RMSprop(params, lr=1e-3, master=True)
    optimizer.step({name: np.linspace(0.1, 1, 5, dtype=np.float32) for name in params})
    for synced, left in ((None, "ab"), ("a", "b"), ("b", "")):
        if synced:
            optimizer.sync_master(synced)
        assert "".join(name for name in params if optimizer.state[name]["param_low"].any()) == left
    optimizer.step({name: np.linspace(0.1, 1, 5, dtype=np.float32) for name in params})
    optimizer.sync_master()
    assert not any(optimizer.state[name]["param_low"].any() for name in params)
    with pytest.raises(ValueError, match=r"sync_master: expected a parameter with master=True, got 'c'"):
        optimizer.sync_master("c")


def test_a_skipped_step_draws_the_same_noise_again() -> None:
    """It changes nothing, so the next step is what this one would have been."""
    arrays = [np.ones(100, BFLOAT16) for _ in range(2)]
    optimizers = [fs.Adagrad(array) for array in arrays]
    optimizers[0].step(np.full(100, np.nan, BFLOAT16), nonfinite="skip")
    for optimizer in optimizers:
        optimizer.step(np.full(100, 0.3, BFLOAT16))
    assert not difference(*arrays)


@pytest.mark.slow
def test_a_long_sum_of_squares() -> None:
    """The mean root of Adagrad's sum over 20,000 steps is within 3% of the true one; with rounding to nearest it
    stalls."""
    rng, n = np.random.default_rng(7), 256
    exact = np.zeros(n)
    runs = {rounding: fs.Adagrad(np.zeros(n, np.float32), state_dtype="bfloat16", rounding=rounding)
            for rounding in ("stochastic", "nearest")}  # fmt: skip
    for _ in range(20_000):
        grad = rng.standard_normal(n).astype(np.float32)
        exact += grad.astype(float) ** 2
        for optimizer in runs.values():
            optimizer.step(grad)
    ratio = {
        rounding: (np.sqrt(optimizer.state["0"]["square_sum"].astype(float)) / np.sqrt(exact)).mean()
        for rounding, optimizer in runs.items()
    }
    assert abs(ratio["stochastic"] - 1) < 0.03
    assert ratio["nearest"] < 0.5


def test_a_state_decays_to_0_beside_a_live_one() -> None:
    """Without gradients an average ends at 0, not at the smallest number, and its neighbours keep their values."""
    state = np.full(64, 1e-30, BFLOAT16)
    param, grad = np.zeros(64, np.float32), np.zeros(64, np.float32)
    grad[::2] = 1.0
    for t in range(1, 2500):
        fs.rmsprop_(param, grad, state, lr=1e-3, alpha=0.9, key=fs.noise_key(0, t, "w"))
    assert not state[1::2].any()
    assert np.allclose(state[::2].astype(float), 1.0, rtol=0.02)
    assert np.isfinite(param).all()


def test_groups_are_stored_as_they_say() -> None:
    """Each group has its own storage, and the constructor's where it gives none."""
    wide, narrow = np.zeros(3, np.float32), np.zeros(3, np.float32)
    optimizer = fs.RMSprop(
        [{"params": {"a": wide}, "state_dtype": None}, {"params": {"b": narrow}}], state_dtype=ml_dtypes.bfloat16
    )
    assert optimizer.state["a"]["square_avg"].dtype == np.float32
    assert optimizer.state["b"]["square_avg"].dtype == BFLOAT16
    optimizer.add_param_group({"params": {"c": np.zeros(3, BFLOAT16)}, "master": True, "state_dtype": BFLOAT16})
    assert list(optimizer.state["c"]) == ["square_avg", "param_low"]


# ------------------------------------------------------------------------------------------------------------- refusals

BAD_OPTIONS = (
    ({"state_dtype": "float16"}, np.float32, ValueError, ("state_dtype", "bfloat16", "float16")),
    ({"state_dtype": np.float32}, np.float32, ValueError, ("state_dtype", "bfloat16", "float32")),
    ({"state_dtype": 3}, np.float32, TypeError, ("state_dtype", "bfloat16", "3")),
    ({"state_dtype": "bfloat16"}, np.float64, ValueError, ("state_dtype", "none", "float64", "bfloat16", "'w'")),
    ({"master": True}, np.float32, ValueError, ("master", "bfloat16", "float32", "'w'")),
    ({"master": True}, np.float16, ValueError, ("master", "bfloat16", "float16", "'w'")),
    ({"master": 1}, BFLOAT16, TypeError, ("master", "True or False", "1")),
    ({"rounding": "up"}, np.float32, ValueError, ("rounding", "nearest", "stochastic", "'up'")),
    ({"seed": -1}, np.float32, ValueError, ("seed", "0 to 2^64", "-1")),
    ({"seed": 2**64}, np.float32, ValueError, ("seed", "0 to 2^64", str(2**64))),
    ({"seed": 1.5}, np.float32, TypeError, ("seed", "whole number", "1.5")),
    ({"seed": True}, np.float32, TypeError, ("seed", "whole number", "True")),
)


@pytest.mark.parametrize(("options", "dtype", "error", "words"), BAD_OPTIONS, ids=lambda x: str(x)[:40])
def test_storage_that_is_refused(options: Any, dtype: Any, error: Any, words: tuple[str, ...]) -> None:
    """Refuse it in the constructor and in an added group, before anything has changed."""
    param = np.ones(3, dtype)
    optimizer = fs.RMSprop({"v": np.ones(2, np.float32)})
    with refused(error, words, [param]):
        fs.RMSprop({"w": param}, **options)
    if "seed" not in options:
        with refused(error, words, memory_of(optimizer, param)):
            optimizer.add_param_group({"params": {"w": param}, **options})
        assert list(optimizer.state) == ["v"]


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16, np.float16, np.float64], ids=str)
def test_gradients_that_are_refused(dtype: Any) -> None:
    """Refuse types that the computation does not hold exactly, integers and others, with both types in the message."""
    for bad in (np.float64, np.int32, np.uint16, np.int8, np.bool_, ml_dtypes.float8_e5m2, np.complex64):
        if bad != dtype:
            optimizer = fs.Adagrad({"w": np.ones(3, dtype)})
            with refused(TypeError, ("'w'", "float32", str(np.dtype(bad))), memory_of(optimizer)):
                optimizer.step({"w": np.ones(3, bad)})


def test_arrays_of_functions_that_are_refused() -> None:
    """Low halves without a bfloat16 parameter, or of another type; float16 states; keys out of range."""
    arrays = {"param": np.ones(3, BFLOAT16), "grad": np.ones(3, np.float32), "square_sum": np.zeros(3, np.float32)}
    low = np.zeros(3, np.uint16)
    for changed, error, words in (
        ({"param": np.ones(3, np.float32), "param_low": low}, ValueError, ("param_low", "bfloat16", "float32")),
        ({"param_low": low.astype(np.int16)}, TypeError, ("param_low", "uint16", "int16")),
        ({"param_low": low[:2]}, ValueError, ("param_low", "shape")),
        ({"square_sum": np.zeros(3, np.float16)}, TypeError, ("square_sum", "float32 or bfloat16", "float16")),
        ({"square_sum": np.zeros(3, np.float64)}, TypeError, ("square_sum", "float32 or bfloat16", "float64")),
        ({"key": -1}, ValueError, ("key", "2^64", "-1")),
        ({"key": 2**64}, ValueError, ("key", "2^64", str(2**64))),
        ({"key": 0.5}, TypeError, ("key", "whole number", "0.5")),
    ):
        given: dict[str, Any] = {**arrays, **changed}
        with refused(error, words, [given[name] for name in arrays], str(changed)):
            fs.adagrad_(**given, lr=0.1)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs bfloat16 asks for ml_dtypes."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    param = np.ones(3, np.float32)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        fs.RMSprop(param, state_dtype="bfloat16")
    fs.RMSprop(param).step(param * 0.1)


# --------------------------------------------------------------------------------------------------------------- files


def test_bits_in_files(tmp_path: Path) -> None:
    """An .npz has bits and says so, a .safetensors has its own type; other readers find both."""
    import json

    param = np.linspace(-2, 2, 7).astype(BFLOAT16)
    optimizer = fs.RMSprop({"w": param}, state_dtype="bfloat16", seed=2**64 - 1, master=True)
    optimizer.step({"w": np.ones(7, BFLOAT16)})
    optimizer.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        about = json.loads(file["metadata"].tobytes())
        assert sorted(about["bfloat16"]) == ["params.w", "state.w.square_avg"]
        assert not difference(file["params.w"].view(BFLOAT16), param)
        assert about["seed"] == 2**64 - 1
    optimizer.save(tmp_path / "x.safetensors")
    header = (tmp_path / "x.safetensors").read_bytes()
    entries = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert {key: entry["dtype"] for key, entry in entries.items() if key != "__metadata__"} == {
        "params.w": "BF16", "state.w.param_low": "U16", "state.w.square_avg": "BF16"}  # fmt: skip


def test_a_state_dict_without_a_seed_keeps_the_own() -> None:
    """Older ones have none; a bad one is refused."""
    old = fs.RMSprop(np.ones(3), seed=3).state_dict()
    assert old.pop("seed") == 3
    optimizer = fs.RMSprop(np.zeros(3), seed=8)
    optimizer.load_state_dict(old)
    assert optimizer.state_dict()["seed"] == 8
    for bad in (-1, 2**64, "1", None, 1.0):
        with pytest.raises(ValueError, match="seed"):
            optimizer.load_state_dict({**old, "seed": bad})


def test_files_of_another_storage_are_refused(tmp_path: Path) -> None:
    """With the types of both."""
    fs.RMSprop(np.ones(3, np.float32), state_dtype="bfloat16").save(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"square_avg.*float32.*bfloat16"):
        fs.RMSprop(np.ones(3, np.float32)).load(tmp_path / "x.npz")
