#!/usr/bin/env bash
# Builds the C++ extension with the address and undefined-behaviour sanitizers, beside the normal
# one, and runs the tests of the multigraph, of sites and of the kernels on it. Needs gcc or clang
# on Linux.
#
#     PYTHON=.venv/bin/python scripts/sanitize_cpp.sh [tests...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
python=$(command -v "$python")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | grep -zv '^docs/' | xargs -0 cp --parents -t "$copy"
cd "$copy"
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
sed -i 's/"-O3"/"-O1", "-fno-var-tracking"/' setup.py # instrumented, -O3 takes half an hour
CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" \
    "$python" setup.py --quiet build_ext --inplace
asan=$(${CXX:-g++} -print-file-name=libasan.so)
stdcpp=$(${CXX:-g++} -print-file-name=libstdc++.so)
# Python and torch keep memory until the process ends: leaks are not looked for
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$copy LANGEVIN_XTAL_BACKEND=cpp OMP_NUM_THREADS=1
tests=("$@")
# code that numba compiles is none of the extension's, and takes longest
[[ ${#tests[@]} -gt 0 ]] ||
    tests=(tests/test_builders.py tests/test_equivalence.py tests/test_fused.py
        tests/laws/test_snapping.py tests/laws/test_targets.py -k "not numba")
LD_PRELOAD="$asan $stdcpp" "$python" -c "
from langevin_xtal.graph import _multigraph
assert _multigraph.__file__.startswith('$copy'), _multigraph.__file__
print('sanitized:', _multigraph.__file__.rsplit('/', 1)[1])"
LD_PRELOAD="$asan $stdcpp" "$python" -m pytest -n 0 -q -p no:cacheprovider "${tests[@]}"
