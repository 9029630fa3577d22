"""The C++ library in another project: from the wheel, from an installation, or built as a part of the project."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fusedstep as fs
import native


def wheel() -> Path:
    return native.consumer_of("consumer-of-the-wheel", fs.get_cmake_dir())


def install() -> Path:
    return native.consumer_of("consumer-of-the-install", native.installed())


@pytest.fixture(scope="session", params=[wheel, install, native.subproject], ids=lambda way: way.__name__)
def consumer(request: pytest.FixtureRequest) -> Path:
    """Return its build folder, for each way in which it can get the library."""
    build: Callable[[], Path] = request.param
    return build()


def test_the_consumers_own_tests_pass(consumer: Path) -> None:
    told = native.run(native.tool("ctest"), "--test-dir", consumer, "--output-on-failure", "--no-tests=error")
    assert re.findall(r"Test +#\d+: (\w+) \.+ +Passed", told) == ["checks"]


# ------------------------------------------------------------------------------------------- consumers of other kinds


C_ONLY = """
cmake_minimum_required(VERSION 3.21)
project(c_only LANGUAGES C)
if(FUSEDSTEP_SOURCE)
  add_subdirectory(${FUSEDSTEP_SOURCE} fusedstep)
else()
  find_package(fusedstep CONFIG REQUIRED)
endif()
add_executable(program ${PROGRAM})
target_link_libraries(program PRIVATE fusedstep::core)
"""


def c_only() -> Path:
    source = native.scratch("c-only-source")
    (source / "CMakeLists.txt").write_text(C_ONLY)
    return source


def test_a_project_in_c_alone_links_the_library() -> None:
    build = native.scratch("c-only")
    program = native.sources() / "examples" / "program.c"
    native.cmake_build(c_only(), build, f"-DPROGRAM={program}", f"-Dfusedstep_DIR={fs.get_cmake_dir()}")
    assert "after 300 steps" in native.run(build / "program")


def test_a_project_in_c_alone_hears_what_the_sources_need() -> None:
    """CMake fails without an explanation if a part of a project uses a language that the project does not enable."""
    told = native.fails(
        native.tool("cmake"), "-S", c_only(), "-B", native.scratch("c-only"), *native.generator(),
        f"-DFUSEDSTEP_SOURCE={native.sources()}",
    )  # fmt: skip
    assert "write project(c_only LANGUAGES C CXX)" in " ".join(told.split())


def test_a_part_of_a_python_package_is_the_library_and_nothing_else() -> None:
    """scikit-build-core's settings are for the whole project: this part makes no extension, version or file."""
    build, prefix = native.scratch("skbuild"), native.scratch("skbuild-prefix")
    native.cxx()
    native.run(
        native.tool("cmake"), "-S", native.CONSUMER, "-B", build, *native.generator(),
        f"-DFUSEDSTEP_SOURCE={native.sources()}", "-DSKBUILD=2", "-DSKBUILD_PROJECT_NAME=theirs",
        "-DSKBUILD_PROJECT_VERSION=99.98.97", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DCMAKE_INSTALL_PREFIX={prefix}",
    )  # fmt: skip
    commands = (build / "compile_commands.json").read_text()
    assert "cpp/bind/" not in commands
    assert fs.__version__ in commands
    assert "99.98.97" not in commands
    native.run(native.tool("cmake"), "--install", build)
    assert list(prefix.iterdir()) == []


def test_a_project_that_compiles_files_together(tmp_path: Path) -> None:
    """CMAKE_UNITY_BUILD changes nothing here: which files are compiled together, and that kernels.cpp is not, stays."""
    native.cxx()
    commands = []
    for together in ("ON", "OFF"):
        options = [
            f"-DFUSEDSTEP_SOURCE={native.sources()}",
            f"-DCMAKE_UNITY_BUILD={together}",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        ]
        native.run(native.tool("cmake"), "-S", native.CONSUMER, "-B", tmp_path, *native.generator(), *options)
        found = json.loads((tmp_path / "compile_commands.json").read_text(encoding="utf-8"))
        commands.append([each["command"] for each in found if "fusedstep_" in each["command"]])
    assert commands[0] == commands[1]
    assert any("kernels.cpp" in command for command in commands[0])


WITHOUT_EXCEPTIONS = """
#include <fusedstep/fusedstep.hpp>
#include <cstdio>
#include <vector>
int main() {
  std::vector<float> w(3, 1.0f), g(3, 1.0f), v(3);
  fusedstep::step(fusedstep::RMSprop{.lr = 0.5, .alpha = 0.75, .eps = 0.0}, fusedstep::span{w}, fusedstep::span{g},
                  fusedstep::span{v});
  std::printf("%g", static_cast<double>(w[0]));
}
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_consumers_need_no_exceptions(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(WITHOUT_EXCEPTIONS)
    cmake = Path(fs.get_cmake_dir())
    native.run(
        native.tool(compiler), "-std=c++20", "-fno-exceptions", "-Wall", "-Wextra", "-Werror",
        f"-I{fs.get_include()}", tmp_path / "main.cpp", f"-L{cmake.parents[1]}", "-lfusedstep", "-pthread",
        "-o", tmp_path / "main",
    )  # fmt: skip
    assert native.run(tmp_path / "main") == "0"


# ----------------------------------------------------------------------------------------------------------- packages


def test_the_shared_library_exports_only_the_public_api() -> None:
    library = native.shared_library()
    headers = native.sources() / "cpp" / "include" / "fusedstep"
    of_c = set(re.findall(r"\b(fusedstep_[a-z_]+)\(", (headers / "fusedstep.h").read_text()))
    lines = native.run(native.tool("nm"), "-D", "-C", "--defined-only", library).splitlines()
    names = {line.split(maxsplit=2)[2] for line in lines}
    assert {name for name in names if "::" not in name} == of_c
    of_cpp = {re.sub(r"\[abi:\w+\]", "", name).partition("(")[0] for name in names if "::" in name}
    functions = {"step", "norm", "isa", "available_isas", "force_isa", "num_threads", "set_num_threads", "set_executor",
                 "noise_key", "refuse", "schema::text"}  # fmt: skip
    methods = {"AnyRule::AnyRule", "AnyRule::named", "AnyRule::name", "AnyRule::states", "Optimizer::Optimizer",
               "Optimizer::~Optimizer", "Optimizer::operator=", "Optimizer::step", "Optimizer::set_rule",
               "Optimizer::state", "Optimizer::sync_master"}  # fmt: skip
    assert of_cpp == {f"fusedstep::{name}" for name in functions | methods}


def test_pkg_config_leads_a_compiler_to_the_installed_library(tmp_path: Path) -> None:
    prefix = native.installed()
    [file] = prefix.rglob("fusedstep.pc")
    told = file.read_text()
    assert f"\nVersion: {fs.__version__}\n" in told
    folders = dict(re.findall(r"^(\w+)=\$\{pcfiledir\}/(.*)$", told, re.MULTILINE))
    include = (file.parent / folders["includedir"]).resolve()
    library = (file.parent / folders["libdir"]).resolve()
    assert (include / "fusedstep" / "fusedstep.hpp").is_file()
    assert (library / "libfusedstep.a").is_file()
    assert str(prefix) not in told  # so that the folder can be moved
    environment = {**os.environ, "PKG_CONFIG_PATH": str(file.parent)}
    command = [native.tool("pkg-config"), "--cflags", "--libs", "--static", "fusedstep"]
    flags = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    (tmp_path / "main.cpp").write_text(
        "#include <fusedstep/fusedstep.hpp>\n#include <cstdio>\nint main() { std::puts(fusedstep::isa().c_str()); }\n"
    )
    program = tmp_path / "main"
    native.run(native.cxx(), "-std=c++20", tmp_path / "main.cpp", "-o", program, *flags)
    assert native.run(program).strip() in fs.available_isas()


def test_info_prints_the_folders() -> None:
    def info(*options: str) -> str:
        return native.run(sys.executable, "-m", "fusedstep", "info", *options).removesuffix("\n")

    assert info("--cmake-dir") == fs.get_cmake_dir()
    assert (Path(fs.get_cmake_dir()) / "fusedstepConfig.cmake").is_file()
    file = Path(info("--pkg-config-dir")) / "fusedstep.pc"
    folders = dict(re.findall(r"^(\w+)=\$\{pcfiledir\}/(.*)$", file.read_text(), re.MULTILINE))
    assert (file.parent / folders["includedir"] / "fusedstep" / "fusedstep.h").is_file()
    assert (file.parent / folders["libdir"] / "libfusedstep.a").is_file()
    assert (Path(info("--include-dir")) / "fusedstep" / "fusedstep.hpp").is_file()
    assert fs.__version__ in info()


def test_scikit_build_core_finds_the_package() -> None:
    """Its entry point names the module in which CMake looks: the package itself, which has lib/cmake."""
    [entry] = [e for e in importlib.metadata.entry_points(group="cmake.root") if e.name == "fusedstep"]
    root = Path(fs.get_cmake_dir()).parents[2]
    assert entry.value == "fusedstep"
    build = native.scratch("by-root")
    native.cxx()
    options = [*native.generator(), f"-Dfusedstep_ROOT={root}"]
    told = native.run(native.tool("cmake"), "-S", native.CONSUMER, "-B", build, *options)
    assert "Build files have been written" in told
    assert f"fusedstep_DIR:PATH={fs.get_cmake_dir()}" in (build / "CMakeCache.txt").read_text()


def test_another_minor_version_is_refused() -> None:
    build = native.scratch("another-version")
    source = native.scratch("another-version-source")
    major, minor = map(int, fs.__version__.split(".")[:2])
    lines = ["cmake_minimum_required(VERSION 3.21)", "project(other LANGUAGES CXX)"]
    for version in (f"{major}.{minor + 1}", f"{major + 1}.{minor}", f"{major}.{minor}"):
        lines.append(f"find_package(fusedstep {version} CONFIG QUIET)")
        lines.append(f'message(STATUS "{version}: ${{fusedstep_FOUND}} at ${{fusedstep_VERSION}}")')
    (source / "CMakeLists.txt").write_text("\n".join(lines))
    native.cxx()
    where = f"-Dfusedstep_ROOT={Path(fs.get_cmake_dir()).parents[2]}"
    told = native.run(native.tool("cmake"), "-S", source, "-B", build, *native.generator(), where)
    found = re.findall(r"^-- ([\d.]+): (\w+) at (.*)$", told, re.MULTILINE)
    assert [(version, answer) for version, answer, _ in found] == [
        (f"{major}.{minor + 1}", "0"), (f"{major + 1}.{minor}", "0"), (f"{major}.{minor}", "1")
    ]  # fmt: skip
    assert found[-1][2] == fs.__version__


def test_builds_leave_the_checkout_alone(tmp_path: Path) -> None:
    """Two builds at once, by different compilers, each configure anew and write nothing into the sources. So a checkout
    may be read-only, and no build sees files of another. (This test compiles nothing.)"""
    for module in ("scikit_build_core", "pybind11", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "cmake", "cpp", "python"):
        path = native.sources() / name
        if path.is_dir():
            shutil.copytree(path, checkout / name, ignore=shutil.ignore_patterns("_core.*.*", "__pycache__"))
        else:
            shutil.copy(path, checkout)
    before = {path: path.stat().st_mtime_ns for path in checkout.rglob("*")}
    compilers = (native.cxx(), native.tool("clang++", "c++"))
    quick = ("-Cbuild.targets=help", "-Cinstall.components=none")
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", *quick, checkout]
    builds = [
        subprocess.Popen(
            [*command, "-w", tmp_path / str(k)], env={**os.environ, "CXX": compiler}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for k, compiler in enumerate(compilers)
    ]  # fmt: skip
    for build, compiler in zip(builds, compilers, strict=True):
        told = build.communicate(timeout=600)[0]
        assert build.returncode == 0, told
        assert f"Check for working CXX compiler: {compiler}" in told
    assert {path: path.stat().st_mtime_ns for path in checkout.rglob("*")} == before
