"""What the compiler made of the kernels, read from the object code. Nothing here runs them.

CMake builds the core without Python, as it is in the source tree.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusedstep import _core
from native import cmake_build, cxx, fails, generator, run, scratch, sources, tool
from registry import ENTRIES, Loop

pytestmark = pytest.mark.slow

ISAS = _core.compiled_isas()
X86 = "avx2" in ISAS

# The widest registers of each instruction set, and the levels of x86-64 that it may use.
REGISTERS = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
LEVELS = {
    "baseline": {"x86-64-baseline"},
    "avx2": {"x86-64-baseline", "x86-64-v2", "x86-64-v3"},
    "avx512": {"x86-64-baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4"},
}

# The loops of the rules, and those of no rule: the limits that rules are measured against, and the norm.
LOOPS = {
    f"{each.loop} {each.struct}".strip(): each
    for each in (
        *(dataclasses.replace(loop, variants=2 * loop.variants) for entry in ENTRIES for loop in entry.loops),
        Loop("TrafficRule", 4, "add", "both"),
        Loop("SignTrafficRule", 1, "add", "both"),
        Loop("", 1, "add sub mul", "full", "sum_of_squares_loop"),
        Loop("", 1, "add mul", "full", "scaled_sum_of_squares_loop"),
        Loop("", 3, "add div", "full", "divide_and_root_loop"),
        Loop("", 1, "add", "full", "add_loop"),
    )
}
IN_DOUBLE = ("reduce_loop", "sum_of_squares_loop", "scaled_sum_of_squares_loop")
HALF = "half_width_"
NARROW = "narrow_"
NAME = re.compile(r"[^(]*?((\w+_loop)<(?:(\w+Rule)\b)?.*?\b(float|double|bfloat16)\b.*?>)\((?!.*\.cold)")

# Functions that a compiler may call on its own.
MAY_CALL = {"memcpy", "memmove", "memset", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}

SYSTEM_LIBRARY = re.compile(r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|ld-linux[-\w]*)\.so\.\d+|linux-vdso\.so\.1")

each_isa = pytest.mark.parametrize("isa", ISAS)
only_x86 = pytest.mark.skipif(not X86, reason="names registers and instructions of x86-64")


# ------------------------------------------------------------------------------------------------------------- objects


@dataclass(frozen=True)
class Instruction:
    name: str
    operands: str

    def uses(self, register: str) -> bool:
        return f"%{register}" in self.operands


@dataclass(frozen=True)
class Code:
    """The code of a loop, and the names in its template arguments."""

    name: str
    kind: str
    type: str
    code: list[Instruction]

    def lacks(self, register: str) -> list[str]:
        """The packed instructions in these registers that should be there and are not."""
        suffix = "pd" if self.type == "double" or self.kind.startswith(IN_DOUBLE) else "ps"
        found = {each.name.removeprefix("v") for each in self.code if each.uses(register)}
        arithmetic = LOOPS[self.kind.removeprefix(HALF).removeprefix(NARROW)].arithmetic.split()
        return [f"{name}{suffix}" for name in arithmetic if f"{name}{suffix}" not in found]


class Object:
    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def symbols(self) -> list[tuple[str, str]]:
        """The type of each symbol, in nm's letters, and its name."""
        lines = run(tool("nm"), "--format=posix", self.path).splitlines()
        return [(kind, name) for name, kind, *_ in map(str.split, lines)]

    @functools.cached_property
    def functions(self) -> dict[str, list[Instruction]]:
        functions: dict[str, list[Instruction]] = {}
        for line in run(tool("objdump"), "-d", "-C", "--no-show-raw-insn", self.path).splitlines():
            if start := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
                name = start[1].replace("fusedstep::", "").replace("(anonymous namespace)::", "")
                code = functions.setdefault(name, [])
            elif instruction := re.fullmatch(r" *[0-9a-f]+:\t(\S+)(.*)", line):
                code.append(Instruction(instruction[1], instruction[2]))
        return functions

    @property
    def code(self) -> Iterator[tuple[str, Instruction]]:
        """All instructions, each with the name of its function."""
        return ((name, each) for name, code in self.functions.items() for each in code)

    @functools.cached_property
    def loops(self) -> list[Code]:
        loops = []
        for name, code in self.functions.items():
            if found := NAME.match(name):
                kind = " ".join(part for part in found.group(2, 3) if part)
                loops.append(Code(found[1], kind, "float" if kind.startswith(NARROW) else found[4], code))
        return loops

    @functools.cached_property
    def levels(self) -> set[str]:
        """The levels of x86-64 that instructions are taken from."""
        note = re.search(r"x86 ISA used: (.*)", run(tool("readelf"), "--notes", "--wide", self.path))
        assert note, f"{self.path} says nothing of the instructions in it"
        return set(re.findall(r"x86-64-\w+", note[1]))


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    """CMake looks for Ninja on the path, where it is missing if the environment is not activated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
        yield


def is_clang() -> bool:
    return "clang" in run(cxx(), "--version")


@pytest.fixture(scope="module")
def core(scripts_on_path: None) -> dict[str, Object]:
    """The object files of the core; those of the kernels by the names of their instruction sets."""
    build = scratch("objects")
    # -fno-ipa-icf: if two loops become equal, GCC keeps one name, but this test wants all.
    # -mx86-used-note: the assembler (binutils', for Clang too) notes which instructions there are.
    look = "-fno-integrated-as" if is_clang() else "-fno-ipa-icf"
    flags = f"{os.environ.get('CXXFLAGS', '')} {look}" + (" -Wa,-mx86-used-note=yes" if X86 else "")
    cmake_build(sources(), build, "-DFUSEDSTEP_PYTHON=OFF", f"-DCMAKE_CXX_FLAGS={flags}")
    objects = {}
    for path in build.rglob("*.o"):
        kernels = re.search(r"fusedstep_kernels_(\w+)\.dir", str(path))
        objects[kernels[1] if kernels else path.stem] = Object(path)
    return objects


def test_each_instruction_set_has_an_object(core: dict[str, Object]) -> None:
    assert set(ISAS) <= set(core)
    assert len(core) > len(ISAS)
    assert all(core[isa].path.name == "kernels.cpp.o" for isa in ISAS)


@each_isa
def test_linker_has_nothing_to_merge(core: dict[str, Object], isa: str) -> None:
    """Of two weak symbols with one name the linker takes either: it may put AVX-512 code into the baseline."""
    weak = [name for kind, name in core[isa].symbols if kind in "vVwWu"]
    assert not weak, f"weak symbols in the object for {isa}: {', '.join(weak)}"


@each_isa
def test_table_is_all_that_an_object_shows(core: dict[str, Object], isa: str) -> None:
    shown = [name for kind, name in core[isa].symbols if kind.isupper() and kind != "U"]
    assert shown == [f"_ZN9fusedstep{len('kernels_' + isa)}kernels_{isa}E"]


@each_isa
def test_object_calls_nothing_of_ours(core: dict[str, Object], isa: str) -> None:
    called = {name for kind, name in core[isa].symbols if kind == "U"}
    assert called <= MAY_CALL, f"the object for {isa} also calls {', '.join(sorted(called - MAY_CALL))}"


def test_nothing_rounds_as_a_machines_library_does(core: dict[str, Object]) -> None:
    """The last bits of pow, exp and their like differ between C libraries, and between processors in one of them."""
    called = {name.partition("@")[0] for each in core.values() for kind, name in each.symbols if kind == "U"}
    assert not [
        name for name in called if re.fullmatch(r"(pow|powi|exp|exp2|expm1|log|log2|log10|log1p|hypot|cbrt)[fl]?", name)
    ]


@each_isa
def test_nothing_runs_before_an_instruction_set_is_chosen(core: dict[str, Object], isa: str) -> None:
    """Initializers of globals run when the library is loaded, on any processor."""
    early = [name for _, name in core[isa].symbols if "_GLOBAL__sub_I" in name or "__static_init" in name]
    assert not early
    assert "init_array" not in run(tool("objdump"), "-h", core[isa].path)


# Globals of the core that are not constant, and what guards each. It must hold in a process without a GIL, too.
GLOBALS = {
    "chosen()::isa": "atomic, made once",
    "dialects<>()::rows": "const, made once",
    "current_pool": "atomic, made under a lock",
    "creation": "is that lock",
    "watches_forks": "atomic",
    "chosen_threads": "atomic",
    "usual_threads": "atomic",
    "all_work_is_shared": "atomic",
    "callers_executor()::executor": "the caller's word not to change it while a step is under way",
    "last_error": "a thread's own",
    "fusedstep_isa::name": "a thread's own",
}


def test_every_global_is_guarded(core: dict[str, Object]) -> None:
    """No other global of the core can be written, and none of the kernels."""
    if is_clang():
        pytest.skip("Clang splits globals and gives the parts names of its own")
    found = {}
    for name, each in core.items():
        for line in run(tool("objdump"), "--syms", "-C", each.path).splitlines():
            symbol = re.search(r" (\.(?:bss|data|tbss|tdata)(?!\.rel\.ro)[\w.]*|\*COM\*)\t[0-9a-f]+ +(.*)", line)
            if (
                symbol
                and not symbol[2].startswith((".", "DW.ref", "__tls_guard", "std::"))
                and "guard variable" not in symbol[2]
            ):
                plain = re.sub(r"fusedstep::|\(anonymous namespace\)::", "", symbol[2])
                found[re.sub(r"<\w+>", "<>", plain)] = name
    assert set(found) == set(GLOBALS)
    assert not {*found.values()} & set(ISAS)


# Further globals of the extension: NumPy's descriptors, and tables that CPython does not want const.
BOUND = {
    "descriptors", "holder", "step_definition", "step_method_members", "step_method_slots", "step_method_specification",
    "report_fields", "report_description",
}  # fmt: skip


def test_every_global_of_the_extension_is_guarded() -> None:
    """The same for the files that bind the core to Python. Read from their sources, because wheels have no symbols."""
    found = set()
    for path in (sources() / "cpp" / "bind").glob("*.cpp"):
        for line in path.read_text(encoding="utf-8").splitlines():
            variable = re.match(
                r"(?:\s+static\s+|thread_local\s+)?(?:const )?[A-Z]\w+(?: ?[*&])?(?: const)? (\w+)(?:\[\])?(?: =|\{)",
                line,
            )
            if variable and (line[0] != " " or "static" in line) and not line.startswith("using"):
                found.add(variable[1])
    assert found == BOUND


def test_kernels_stay_out_of_link_time_optimisation(tmp_path: Path) -> None:
    """Distributions switch it on for everything, and it merges code across instruction sets. Each command that compiles
    kernels makes ordinary code, also of a shorter file."""
    tool("ninja")
    asked = "-DCMAKE_CXX_FLAGS=-flto", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON"  # in both ways at once
    told = "-DFUSEDSTEP_PYTHON=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    run(tool("cmake"), "-G", "Ninja", "-S", sources(), "-B", tmp_path, *told, *asked)
    short, path = tmp_path / "short.cpp", tmp_path / "short.o"
    short.write_text("int one() { return 1; }\n", encoding="utf-8")
    commands = [shlex.split(each["command"]) for each in json.loads((tmp_path / "compile_commands.json").read_text())]
    kernels = [words for words in commands if words[-1].endswith("kernels.cpp")]
    assert len(kernels) == len(ISAS)
    for words in kernels:
        run(*words[: words.index("-o")], "-o", path, "-c", short)
        assert ".gnu.lto" not in run(tool("objdump"), "-h", path)


def test_a_schema_with_mistakes_does_not_compile(tmp_path: Path) -> None:
    """A state that starts at what is no option, and an option that is forgotten, would be found when a step runs."""
    shutil.copytree(sources() / "cpp", tmp_path / "cpp")
    header = tmp_path / "cpp" / "include" / "fusedstep" / "rules" / "rmsprop.hpp"
    text = header.read_text(encoding="utf-8")
    for right, wrong in (
        ('.used_with = "momentum"}', '.starts_at = "typo", .used_with = "momentum"}'),
        ("FUSEDSTEP_FIELD(alpha, schema::unit),", ""),
    ):
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    header.write_text(text, encoding="utf-8")
    told = fails(cxx(), "-std=c++20", "-fsyntax-only", tmp_path / "cpp" / "schema.cpp")
    assert "Schema::states" in told
    assert "Schema::fields" in told


FAST_MATH = (
    "-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-ffinite-math-only", "-fassociative-math",
    "-freciprocal-math", "-fno-signed-zeros",
)  # fmt: skip


@pytest.mark.parametrize("flag", FAST_MATH)
def test_fast_math_is_refused_by_name(tmp_path: Path, flag: str) -> None:
    """It would change results, and how the whole Python process treats subnormals."""
    cxx()
    command = [tool("cmake"), *generator(), "-S", sources(), "-B", tmp_path, "-DFUSEDSTEP_PYTHON=OFF"]
    command.append(f"-DCMAKE_CXX_FLAGS={flag}")
    assert f"{flag}: fusedstep is exact to the bit" in fails(*command)


@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only", "-funsafe-math-optimizations"])
def test_kernels_do_not_compile_with_fast_math(flag: str) -> None:
    """Also if it does not come from CMake's flags."""
    if flag == "-funsafe-math-optimizations" and is_clang():
        pytest.skip("Clang tells programs nothing of it")
    command = [cxx(), "-std=c++20", "-fsyntax-only", "-DFUSEDSTEP_KERNELS=kernels", sources() / "cpp" / "kernels.cpp"]
    run(*command)
    assert re.search("error: .*fusedstep is exact to the bit", fails(*command, flag))


@only_x86
@each_isa
def test_object_keeps_to_its_instruction_set(core: dict[str, Object], isa: str) -> None:
    allowed = list(REGISTERS.values())[: list(REGISTERS).index(isa) + 1]
    used = [register for register in REGISTERS.values() if any(each.uses(register) for _, each in core[isa].code)]
    assert used == allowed
    assert core[isa].levels <= LEVELS[isa]


@only_x86
def test_rest_of_the_core_keeps_to_the_baseline(core: dict[str, Object]) -> None:
    rest = {name: each.levels for name, each in core.items() if name not in ISAS}
    assert rest == dict.fromkeys(rest, LEVELS["baseline"])


@only_x86
@each_isa
def test_nothing_is_contracted(core: dict[str, Object], isa: str) -> None:
    """A fused multiply-add rounds once where the reference rounds twice. Rprop's product is exact."""
    fused = {name for name, each in core[isa].code if re.match(r"vfn?m(add|sub)", each.name)}
    fused = {name for name in fused if "RpropRule" not in name}
    assert not fused, f"fused multiply-adds in the object for {isa}: {', '.join(sorted(fused))}"


@each_isa
def test_every_kernel_is_there(core: dict[str, Object], isa: str) -> None:
    """The other tests look for loops by name, and would pass without any."""
    found = Counter((loop.kind, loop.type) for loop in core[isa].loops)
    two_widths = isa == "avx512" and not is_clang()
    expected = {}
    for kind, loop in LOOPS.items():
        if loop.width != "half" or not two_widths:
            expected[kind] = loop.variants
        if loop.width != "full" and two_widths:
            expected[f"{HALF}{kind}"] = loop.variants
    wanted = {(kind, type): count for kind, count in expected.items() for type in ("float", "double")}
    for kind, loop in LOOPS.items():
        if loop.narrow:
            # By the types of parameter, gradient and states, and for master parameters; and, if anything is rounded, to
            # nearest and stochastically. Beside wide streams, one of bytes needs an instruction that converts a vector.
            storages = 4 if loop.width == "both" and (isa == "baseline" or is_clang()) else 11
            wanted[f"{NARROW}{kind}", "float"] = storages * loop.variants // 2
    assert found == wanted, "the entry of a rule in tests/registry.py says in `loops` what its kernels are"


@only_x86
@each_isa
def test_every_loop_is_vectorised(core: dict[str, Object], isa: str) -> None:
    """In the widest registers or half of them, with square roots and selects, which compilers lose first."""
    # SSE2 and float64: Clang 14 does not find two elements at a time worth emulating the selects, which SSE2 lacks.
    scalar = re.compile("ProximalAdagrad.*double|AdagradDA.*double" if isa == "baseline" and is_clang() else "$^")
    loops = [loop for loop in core[isa].loops if not scalar.search(loop.name)]
    lost = []
    for loop in loops:
        half = isa == "avx512" and (loop.kind.startswith(HALF) or loop.kind == "divide_and_root_loop")
        register = REGISTERS["avx2" if half and not is_clang() else isa]
        if lacks := loop.lacks(register):
            lost.append(f"{loop.name}\n    lacks {' '.join(lacks)} in {register}")
    assert not lost, f"{len(lost)} of {len(loops)} loops for {isa} are not vectorised:\n" + "\n".join(lost)


@only_x86
def test_no_prefetch_is_lost(core: dict[str, Object]) -> None:
    """GCC drops the calls of a function that only prefetches, unless the function shows an effect."""
    files = ((sources() / "cpp" / name).read_text(encoding="utf-8") for name in ("rows.cpp", "loops/tensors.cpp"))
    asked = [len(re.findall(r"(?<!void) (?:prefetch<2>|fetch)\(", text)) for text in files]
    assert all(asked)
    assert sum(each.name.startswith("prefetch") for part in core.values() for _, each in part.code) >= sum(asked)


# ----------------------------------------------------------------------------------------------------------- extension


@pytest.fixture(scope="module")
def extension() -> Path:
    """The extension module that the tests import."""
    assert _core.__file__
    path = Path(_core.__file__)
    if not path.read_bytes().startswith(b"\x7fELF"):
        pytest.skip("the extension is no ELF file")
    return path


def test_extension_needs_system_libraries_only(extension: Path) -> None:
    dynamic = run(tool("readelf"), "-d", "--wide", extension)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libc.so.6" in needed
    assert all(map(SYSTEM_LIBRARY.fullmatch, needed)), needed
    assert not re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", dynamic), dynamic


def test_extension_shows_nothing_of_ours(extension: Path) -> None:
    """So another library with a copy of the core keeps its own."""
    names = run(tool("nm"), "-D", "--defined-only", "--format=posix", extension).splitlines()
    shown = [line.split()[0] for line in names]
    assert "PyInit__core" in shown
    assert not [name for name in shown if re.match(r"fusedstep|_Z(T\w)?N?K?(9fusedstep|8pybind11)", name)]
