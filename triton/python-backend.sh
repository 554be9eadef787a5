# Compiles Triton's Python backend from locked sources, without a network: CMake driven directly, never build.py.
#
# Finds: docs/vllm-from-source.md, "The recipe"; boost's archive in /inputs/files. Leaves in /build/out the three files of
# backends/python and their licence.
set -eu
. /inputs/files/cmake.sh

unpack
no_googletest
toolchain

boost=$(echo /inputs/files/boost_*.tar.gz)
[ -f "$boost" ] || fail "no archive of boost" "boost_*.tar.gz among the archives of the recipe" "$(ls /inputs/files)"

# The server's libraries are where its tree has them, whatever it was made of: a RUNPATH relative to backends/python.
configure /build/csrc/src /build/b '$ORIGIN/../../lib' \
    "-DTRITON_BOOST_URL=file://$boost" -DTRITON_ENABLE_STATS=ON -DTRITON_ENABLE_METRICS=ON -DTRITON_ENABLE_NVTX=OFF \
    -DTRITON_ENABLE_GPU="$TRITON_ENABLE_GPU" -DTRITON_ENABLE_MEMORY_TRACKER=OFF
# Two targets: what else is configured (tests, static libraries of other projects) is of no use here.
cmake --build /build/b -j "$STAGECRAFT_JOBS" --target triton-python-backend triton-python-backend-stub

mkdir /build/out
cp /build/b/libtriton_python.so /build/b/triton_python_backend_stub /build/out/
cp /build/csrc/src/src/resources/triton_python_backend_utils.py /build/out/
chmod 755 /build/out/triton_python_backend_stub
chmod 644 /build/out/triton_python_backend_utils.py
[ ! -f /build/csrc/src/LICENSE ] || cp /build/csrc/src/LICENSE /build/out/LICENSE
strip_files /build/out/libtriton_python.so /build/out/triton_python_backend_stub
