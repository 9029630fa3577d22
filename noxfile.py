"""The one list of tasks: ``nox -l`` prints it, ``nox -s lint`` runs one, and ``.ci/run`` runs the short ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "quick"]

BUILD = Path("build")
PROJECT = nox.project.load_toml("pyproject.toml")
C = {".c", ".h", ".cpp", ".hpp"}
# The presets of CMakePresets.json that need more than GCC, and the programs that each needs.
NEEDS = {
    "clang": ("clang++",),
    "clang-python": ("clang++",),
    "fuzz": ("clang++",),
    "aarch64": ("aarch64-linux-gnu-g++", "qemu-aarch64-static"),
    "riscv64": ("riscv64-linux-gnu-g++", "qemu-riscv64-static"),
    "ppc64le": ("powerpc64le-linux-gnu-g++", "qemu-ppc64le-static"),
    "s390x": ("s390x-linux-gnu-g++", "qemu-s390x-static"),
    "mingw": ("x86_64-w64-mingw32-g++-posix", "wine"),
    "zig-windows": ("wine",),
    "musl": (),
    "macos-arm64": (),
    "macos-x86_64": (),
}
ZIG = ("zig-windows", "musl", "macos-arm64", "macos-x86_64")


def pip(session: nox.Session, *arguments: str, **options: Any) -> None:
    """Install where the session runs, which with ``--no-venv`` is where nox itself is."""
    session.run("python", "-m", "pip", "install", "--quiet", *arguments, **options)


def install(session: nox.Session, extras: str = "test", *options: str) -> None:
    """Install the checkout with some of its extras. The build folder is kept, so sessions compile once between them."""
    pip(session, *PROJECT["build-system"]["requires"], "cmake>=3.25", "ninja")
    folder = (BUILD / "package-{cache_tag}").absolute()
    options = ("--no-build-isolation", f"-Cbuild-dir={folder}", "-Ccmake.define.FUSEDSTEP_WERROR=ON", *options)
    pip(session, *options, f".[{extras}]" if extras else ".")


def group(session: nox.Session, name: str) -> None:
    """Install one of pyproject.toml's dependency groups."""
    pip(session, *nox.project.dependency_groups(PROJECT, name))


def pytest(session: nox.Session, *arguments: str) -> None:
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Read everything: Python, C++, spelling, pyproject.toml, workflows."""
    group(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = [file for place in ("cpp", "tests", "examples") for file in Path(place).rglob("*.*") if file.suffix in C]
    session.run("clang-format", "--dry-run", "--Werror", *map(str, sorted(sources)))
    session.run("codespell")
    session.run("validate-pyproject", "pyproject.toml")
    forms = sorted(map(str, Path(".github/ISSUE_TEMPLATE").glob("[!c]*.yml")))
    workflows = sorted(map(str, Path(".github/workflows").glob("*.yml")))
    for schema, files in {
        "github-workflows": workflows,
        "github-issue-forms": forms,
        "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
        "dependabot": [".github/dependabot.yml"],
        "readthedocs": [".readthedocs.yaml"],
        "citation-file-format": ["CITATION.cff"],
    }.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@nox.session
def package(session: nox.Session) -> None:
    """Install the checkout editable, and again over that; it compiles once."""
    install(session, "", "-e")
    install(session, "", "-e")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types: ours, the extension's stubs, and what users' type checkers say."""
    install(session)
    session.run("mypy")
    session.run("python", "-m", "mypy.stubtest", "fusedstep._core")
    told = session.run("python", "-m", "pytest", "-q", "tests/test_typing.py", silent=True)
    session.log(told)
    if "SKIPPED" in str(told):
        session.error("a type checker is missing")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the guide, with warnings as errors."""
    install(session, "docs")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-n", "docs", str(BUILD / "guide"))


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, or those that are named after ``--``."""
    install(session)
    pytest(session)


@nox.session
def quick(session: nox.Session) -> None:
    """Run the tests that take a minute together."""
    install(session)
    pytest(session, "-m", "not slow")


@nox.session
def slow(session: nox.Session) -> None:
    """Draw examples for an hour, and run every preset whose compiler is here for its whole length."""
    install(session)
    pytest(session, "tests/test_properties.py", "--hypothesis-profile=long")
    build(session, "release", "debug", "asan", "asan-python", "tsan", *NEEDS)


@nox.session
def cpp(session: nox.Session) -> None:
    """Build the C++ library by the presets named after ``--`` (without any: by asan), and run its tests.

    Options of CMake follow a name after colons: ``fuzz:-DFUSEDSTEP_FUZZ_SECONDS=8``.
    """
    install(session)
    build(session, *(session.posargs or ["asan"]))


def build(session: nox.Session, *presets: str) -> None:
    if set(ZIG) & {*presets}:
        pip(session, "ziglang")
    for preset in presets:
        name, *options = preset.split(":")
        if lacking := [program for program in NEEDS.get(name, ()) if not shutil.which(program)]:
            session.log(f"not available: {', '.join(lacking)}: nothing is run for {name}")
            continue
        if name == "fuzz":
            if not has_libfuzzer(session):
                session.log("not available: libFuzzer of clang++: nothing is fuzzed")
                continue
            pip(session, "atheris", success_codes=[0, 1])  # optional: without it, fuzzing has no coverage
        session.run("cmake", "--preset", name, *options, silent=True)
        session.run("cmake", "--build", "--preset", name)
        if not name.startswith("macos"):  # its programs run only there
            session.run("ctest", "--preset", name)


def has_libfuzzer(session: nox.Session) -> bool:
    program = 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }'
    command = ["clang++", "-fsanitize=fuzzer", "-x", "c++", "-", "-o", str(Path(session.create_tmp(), "fuzzer"))]
    return subprocess.run(command, input=program, text=True, capture_output=True, check=False).returncode == 0


@nox.session
def consumer(session: nox.Session) -> None:
    """Build the projects in tests that embed the library."""
    install(session)
    pytest(session, "tests/test_embedding.py", "tests/test_c_abi.py", "tests/test_examples.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Compare with other libraries; what follows ``--`` are options of ``python -m bench``."""
    install(session)
    pip(session, "numba", "numexpr", "torch", "jax", "optax")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def recipes(session: nox.Session) -> None:
    """Run what needs large installations: PyTorch, JAX, and the other libraries of the page of recipes."""
    install(session, "test,recipes")
    pytest(session, "tests/test_torch.py", "tests/test_borrowing.py",
           "tests/test_dialects.py", "tests/test_docs.py", "tests/test_examples.py")  # fmt: skip


@nox.session
def wheel(session: nox.Session) -> None:
    """Build what a release is made of, twice; check it; install it where there is no compiler."""
    group(session, "release")
    env = {"SOURCE_DATE_EPOCH": "1700000000"}
    made: list[list[Path]] = []
    for name in ("first", "second"):
        folder = BUILD / "release" / name
        shutil.rmtree(folder, ignore_errors=True)
        session.run("python", "-m", "build", "--outdir", str(folder), env=env)  # builds the wheel from the sdist
        made.append(sorted(folder.iterdir()))
    for one, other in zip(*made, strict=True):
        if one.name != other.name or one.read_bytes() != other.read_bytes():
            session.error(f"{one.name} is not reproducible")
    [built] = [path for path in made[0] if path.suffix == ".whl"]
    session.run("twine", "check", "--strict", *map(str, made[0]))
    session.run("check-wheel-contents", str(built))
    session.run("auditwheel", "show", str(built))
    pip(session, "--force-reinstall", str(built))
    programs = session.bin  # without a compiler or CMake
    session.run("python", "-P", "-m", "fusedstep", "verify", "--quick", env={"PATH": programs})
