"""Checks promises about the native library that no compiler checks.

1. It needs no symbol of libtorch but the stable C ABI, and none of Python.
2. Objects compiled for an instruction set define no shared inline function: the linker could keep the
   copy with AVX-512 instructions for everyone.
3. Nor anything that runs on every CPU: no constructors, and no functions but kernels whose name ends
   in the set's, which dispatch.cpp puts into tables of CPUs that have it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_ALLOWED = re.compile(r"^(aoti_torch_|torch_|_ITM_|__gmon|_Unwind|__cxa|__tls_get_addr|.*@|_ZN?S?[a-z]*)")


def _symbols(*arguments: str) -> list[str]:
    return subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


def check_imports(library: Path) -> list[str]:
    names = [line.split()[-1] for line in _symbols("-D", "--undefined-only", str(library))]
    return [n for n in names if n.startswith(("Py", "_Py")) or "c10" in n or "2at" in n or not _ALLOWED.match(n)]


def check_shared(build: Path) -> list[str]:
    found = []
    for obj in build.rglob("kernels_*.dir/**/*.o"):
        for line in _symbols("-C", str(obj)):
            parts = line.split(maxsplit=2)
            kind, name = parts[-2], parts[-1]
            if kind in "WVu" and not name.startswith("DW.ref."):
                found.append(f"{obj.name}: {name}")
    return found


def check_kernels(build: Path) -> list[str]:
    found = []
    for obj in build.rglob("kernels_*.dir/**/*.o"):
        isa = re.search(r"kernels_(\w+)\.dir", str(obj))[1]
        for line in _symbols(str(obj)):
            kind, name = line.split()[-2:]
            function = re.match(r"_ZN9zeropoint\d+\w+?E", name)
            if (kind == "T" and not (function and function[0].endswith(f"_{isa}E"))) or "_GLOBAL__sub_I" in name:
                found.append(f"{obj.name}: {name}")
    return found


def main() -> int:
    spec = find_spec("zeropoint._zeropoint")
    if spec is None or spec.origin is None:
        print("check_native: the library is not built")
        return 1
    problems = [f"unexpected import: {n}" for n in check_imports(Path(spec.origin))]
    problems += [f"shared inline function in an instruction set's object: {n}" for n in check_shared(Path("build"))]
    problems += [f"function for every CPU in an instruction set's object: {n}" for n in check_kernels(Path("build"))]
    print("\n".join(problems) or "check_native: ok")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
