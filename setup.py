"""Compiles the C++ multigraph and the network's kernels; all else is declared in setup.cfg.

The extension is optional: without a compiler the install succeeds, and the package falls back to
numba, saying so once, and to the network's plain path.
"""

import os
from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

POSIX = os.name != "nt"
FLAGS = ["-O3", "-ffp-contract=off", "-pthread"] if POSIX else ["/O2"]

setup(
    ext_modules=[
        Pybind11Extension(
            "langevin_xtal.graph._multigraph",
            [*sorted(glob("cpp_ext/src/*.cpp")), "cpp_ext/bind/module.cpp"],
            include_dirs=["cpp_ext/include"],
            depends=[*glob("cpp_ext/include/*.hpp"), *glob("cpp_ext/src/*.inc")],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"] if POSIX else [],
            cxx_std=17,
            optional=True,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
