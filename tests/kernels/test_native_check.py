"""The kernels without Python, built for this machine and, where a cross-compiler and an emulator are installed, for Arm.

The builds for this machine's own instruction sets are tested where the installed module is (test_isa.py); here the compiler
chooses none but the architecture's own.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = [path for path in sorted((ROOT / "csrc/kernels").glob("*.cpp")) if "bf16" not in path.name]
SOURCES = [
    *KERNELS,
    *(ROOT / "csrc" / name for name in ("lower.cpp", "scratch.cpp", "segments.cpp", "sortings.cpp")),
    Path(__file__).with_name("native_check.cpp"),
]
# Optimising more, as CMakeLists.txt does, takes longer than the check.
FLAGS = ["-std=c++17", "-O1", "-fopenmp", "-ffp-contract=fast"]
# Sanitizers that the interpreter was started with have no place in a compiler or an emulator.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
BUILDS = {"host": ([], os.environ.get("CXX", "c++")), "aarch64": (["qemu-aarch64"], "aarch64-linux-gnu-g++")}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("build", BUILDS)
def test_kernels_without_python(build, tmp_path):
    emulator, compiler = BUILDS[build]
    for tool in (*emulator, compiler):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if build == "host" and platform.system() != "Linux":
        pytest.skip("linking OpenMP statically is what Linux compilers do")

    def compile_one(source: Path) -> Path:
        to = tmp_path / f"{source.parent.name}_{source.stem}.o"
        run(compiler, *FLAGS, f"-I{ROOT / 'csrc'}", "-DOPENWORK_ISA_NAMESPACE=native", "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    run(compiler, "-fopenmp", "-static", *objects, "-o", tmp_path / "check")
    assert run(*emulator, tmp_path / "check") == "as in double precision\n"
