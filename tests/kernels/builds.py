"""Python programs run with one of the builds of the kernels, whichever this processor would choose."""

import os
import subprocess
import sys
from pathlib import Path


def python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    """The program ``code``, which may import the tests beside this file, with ``OPENWORK_ISA=isa``."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *(p for p in sys.path if p)])
    env = os.environ | {"OPENWORK_ISA": isa, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def assert_runs(script: str, isa: str) -> None:
    """That ``script``, in which ``{isa!r}`` stands for the build, ends without an error."""
    done = python(script.format(isa=isa), isa)
    assert done.returncode == 0, done.stderr
