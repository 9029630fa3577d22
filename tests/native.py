"""Build C and C++ programs against the library: find the tools, and build each thing once per test run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
CONSUMER = TESTS / "consumer"


def tool(*names: str) -> str:
    """Return the path of the first of some programs that is installed, with those beside Python first; else skip."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    pytest.skip(f"there is no {' or '.join(names)} here")


def cxx() -> str:
    return tool(*filter(None, [os.environ.get("CXX")]), "c++", "g++", "clang++")


def cc() -> str:
    return tool(*filter(None, [os.environ.get("CC")]), "cc", "gcc", "clang")


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program and return its output. If it fails, the test fails with all its output."""
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command} returned {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fails(*command: str | Path) -> str:
    """Run a program that should fail, and return what it says on standard error."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode != 0, f"{command} did not fail\n{done.stdout}\n{done.stderr}"
    return done.stderr


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fusedstep-")  # deleted when Python ends


def scratch(name: str) -> Path:
    """Return a new folder that is deleted after this run."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_scratch().name))


def once(build: Callable[[], Path]) -> Callable[[], Path]:
    """Build once per run. A build that failed is not repeated, but fails again at once."""
    failed: list[BaseException] = []

    @functools.cache
    def built() -> Path:
        if failed:
            raise failed[0]
        try:
            return build()
        except BaseException as error:
            failed.append(error)
            raise

    return functools.wraps(build)(built)


def sources() -> Path:
    """Return the library's source tree; skip if the tests run without it."""
    if not (ROOT / "CMakeLists.txt").is_file() or not (ROOT / "cpp" / "api.cpp").is_file():
        pytest.skip("the source tree is not here")
    return ROOT


def generator() -> list[str]:
    """Return CMake's options for Ninja if it is installed beside Python."""
    return ["-G", "Ninja"] if shutil.which("ninja", path=sysconfig.get_path("scripts")) else []


def cmake_build(source: Path, build: Path, *options: str) -> None:
    """Configure and build. CMake's developer warnings are errors."""
    cxx()
    run(tool("cmake"), "-S", source, "-B", build, *generator(), "-DCMAKE_BUILD_TYPE=Release", "-Werror=dev", *options)
    run(tool("cmake"), "--build", build, "--parallel", "2")


@once
def installed() -> Path:
    """Build the static library without Python and install it; return the prefix."""
    build = scratch("static")
    prefix = scratch("prefix")
    cmake_build(sources(), build, "-DFUSEDSTEP_PYTHON=OFF", "-DFUSEDSTEP_WERROR=ON", f"-DCMAKE_INSTALL_PREFIX={prefix}")
    run(tool("cmake"), "--install", build)
    return prefix


@once
def subproject() -> Path:
    """Build the consumer with the shared library as a part of it; return the build folder."""
    build = scratch("subproject")
    cmake_build(CONSUMER, build, f"-DFUSEDSTEP_SOURCE={sources()}", "-DFUSEDSTEP_WERROR=ON", "-DBUILD_SHARED_LIBS=ON")
    return build


def shared_library() -> Path:
    """Return the shared library."""
    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    [library] = subproject().rglob(f"libfusedstep.{ending}")
    return library


def consumer_of(name: str, package: str | Path) -> Path:
    """Build the consumer against an installed package, found by the folder of its CMake files or its prefix."""
    build = scratch(name)
    where = f"-Dfusedstep_DIR={package}" if Path(package, "fusedstepConfig.cmake").is_file() else ""
    cmake_build(CONSUMER, build, where or f"-DCMAKE_PREFIX_PATH={package}")
    return build
