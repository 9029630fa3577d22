"""Optimizers in other processes: joblib, Dask, process pools, data loaders, and the buffers that these pass."""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import importlib
import multiprocessing
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import difference, memory_of
from registry import FULLEST_OF_RULE, Array, Case, loss

pytestmark = [
    pytest.mark.slow,
    # These libraries fork a process that has threads.
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]

LARGE = 150_000
"""Elements of float64 that take over 1 MB: from there on joblib maps arrays into files, and Dask sends them apart."""


def gradients(t: int) -> dict[str, Array]:
    rng = np.random.default_rng(t)
    grads = {"w": rng.standard_normal((300, 500)), "b": rng.standard_normal(7).astype(np.float32)}
    return grads | {"c": rng.standard_normal((4, 5)).T}


def started(case: Case) -> Any:
    """Return an optimizer after two steps, with one large parameter and one in Fortran order."""
    optimizer = case.new({name: 3 * array for name, array in gradients(0).items()})
    for t in (1, 2):
        optimizer.step(gradients(t), loss=loss(t))
    return optimizer


def digest(optimizer: Any) -> str:
    """Return one number for all bits of parameters and states."""
    found = hashlib.sha256()
    for array in memory_of(optimizer):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def goes_on(optimizer: Any) -> str:
    """Make three more steps and return the digest."""
    for t in (3, 4, 5):
        optimizer.step(gradients(t), loss=loss(t), clip_norm=10.0)
    return digest(optimizer)


def assert_went_on(results: list[str], optimizer: Any, before: str) -> None:
    """Each process reaches the result of this one, and nothing changed here."""
    assert digest(optimizer) == before
    assert {*results} == {goes_on(copy.deepcopy(optimizer))}


def threads_and_orders(_: Any = None) -> tuple[int, str]:
    """Return how many threads a step may use in this process, and what OpenMP was told."""
    return fs.get_num_threads(), os.environ["OMP_NUM_THREADS"]


@pytest.fixture(params=FULLEST_OF_RULE, ids=str)
def optimizer(request: pytest.FixtureRequest) -> Any:
    return started(request.param)


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(backend: str) -> None:
    joblib = pytest.importorskip("joblib")
    for case in FULLEST_OF_RULE:
        optimizer = started(case)
        before = digest(optimizer)
        copies = [optimizer] * 3 if backend != "threading" else [copy.deepcopy(optimizer) for _ in range(3)]
        results = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(goes_on)(each) for each in copies)
        assert_went_on(results, optimizer, before)


@pytest.mark.parametrize("inner", [None, 1])
def test_threads_under_joblib(inner: int | None) -> None:
    """joblib divides the processors by telling OpenMP, and steps respect that."""
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=inner):
        results = joblib.Parallel()(joblib.delayed(threads_and_orders)(k) for k in range(4))
    for count, told in results:
        assert count <= int(told) <= max(1, (os.cpu_count() or 1) // 2)


@pytest.mark.parametrize("mode", [None, "r", "c", "r+"])
def test_joblib_files(mode: str | None, optimizer: Any, tmp_path: Path) -> None:
    """Load from a file that is read, or mapped in any mode. The file does not change, unless shared pages were asked
    for."""
    joblib = pytest.importorskip("joblib")
    before = digest(optimizer)
    joblib.dump(optimizer, tmp_path / "optimizer.joblib")
    content = (tmp_path / "optimizer.joblib").read_bytes()
    loaded = joblib.load(tmp_path / "optimizer.joblib", mmap_mode=mode)
    assert digest(loaded) == before
    assert_went_on([goes_on(loaded)], optimizer, before)
    assert mode == "r+" or (tmp_path / "optimizer.joblib").read_bytes() == content


def test_dask() -> None:
    distributed = pytest.importorskip("distributed")
    importlib.import_module("dask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's event loop leaves things open
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            for case in FULLEST_OF_RULE:
                optimizer = started(case)
                before = digest(optimizer)
                futures = [client.submit(goes_on, optimizer, pure=False) for _ in range(2)]
                scattered = client.scatter(optimizer, hash=False)
                futures.append(client.submit(went_on_copy, scattered, pure=False))
                assert_went_on(client.gather(futures), optimizer, before)
            assert {*client.run(threads_and_orders).values()} == {(1, "1")}


def went_on_copy(optimizer: Any) -> str:
    return goes_on(copy.deepcopy(optimizer))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_process_pools(method: str) -> None:
    """Send one by concurrent.futures, there and back, with the same result as here."""
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        for case in FULLEST_OF_RULE:
            optimizer = started(case)
            before = digest(optimizer)
            assert_went_on(list(pool.map(goes_on, [optimizer] * 2)), optimizer, before)
            back = pool.submit(copy.copy, optimizer).result()
            assert_went_on([goes_on(back)], optimizer, before)


class Gradients:
    """A data set: each item is computed with a step of its own optimizer."""

    def __init__(self, case: Case) -> None:
        self.optimizer = started(case)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Array:
        optimizer = copy.deepcopy(self.optimizer)
        optimizer.step(gradients(index), loss=loss(index))
        return np.array(optimizer.param_groups[0]["params"][0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loaders(method: str) -> None:
    """PyTorch's loaders step in their own processes, beside a warm pool here."""
    torch = pytest.importorskip("torch")
    data = Gradients(FULLEST_OF_RULE[0])
    wanted = [data[i] for i in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=method, persistent_workers=True
    )
    for _ in range(2):
        for batch, one in zip(loader, wanted, strict=True):
            assert not difference(batch.numpy(), one)


# ------------------------------------------------------------------------------------------------- out-of-band buffers


def read_only(buffer: pickle.PickleBuffer) -> Any:
    return bytes(buffer.raw())


def misaligned(buffer: pickle.PickleBuffer) -> Any:
    content = bytes(buffer.raw())
    memory = bytearray(len(content) + 1)
    memory[1:] = content
    return memoryview(memory)[1:]


def both(buffer: pickle.PickleBuffer) -> Any:
    return memoryview(misaligned(buffer)).toreadonly()


@pytest.mark.parametrize("kind", [read_only, misaligned, both, bytearray])
@pytest.mark.parametrize("case", FULLEST_OF_RULE, ids=str)
def test_buffers_out_of_band(case: Case, kind: Any) -> None:
    """Unpickle buffers that came separately and can't be written in place: the result has memory of its own, in the
    same layout, and the groups show it."""
    optimizer = started(case)
    before = digest(optimizer)
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(optimizer, protocol=5, buffer_callback=buffers.append)
    given = [kind(buffer) for buffer in buffers]
    kept = [bytes(buffer) for buffer in given]
    loaded = pickle.loads(content, buffers=given)
    for array, one in zip(memory_of(loaded), memory_of(optimizer), strict=True):
        assert array.flags.writeable
        assert array.flags.aligned
        assert array.strides == one.strides
    params = loaded.param_groups[0]["params"]
    first = params[0].copy()
    assert_went_on([goes_on(loaded)], optimizer, before)
    assert (params[0] != first).any()
    if kind is not bytearray:
        assert [bytes(buffer) for buffer in given] == kept
