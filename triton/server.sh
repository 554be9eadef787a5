# Compiles Triton's server and core from locked sources, without a network: CMake driven directly, never build.py.
#
# Finds: docs/vllm-from-source.md, "The recipe"; CLONES, "name repository tag" of each tree that a project inside clones with git;
# TRITON_VERSION. Leaves in /build/out the tree of /opt/tritonserver, without backends.
set -eu
. /inputs/files/cmake.sh

unpack
no_googletest
no_tests
toolchain
clones
archives

configure /build/csrc/src /build/b '$ORIGIN/../lib' -DCMAKE_INSTALL_PREFIX:PATH=/build/server \
    -DTRITON_VERSION:STRING="$TRITON_VERSION" -DCMAKE_POLICY_VERSION_MINIMUM=3.5 \
    -DTRITON_ENABLE_LOGGING=ON -DTRITON_ENABLE_STATS=ON -DTRITON_ENABLE_METRICS=ON -DTRITON_ENABLE_METRICS_CPU=ON \
    -DTRITON_ENABLE_HTTP=ON -DTRITON_ENABLE_GRPC=ON -DTRITON_ENABLE_ENSEMBLE=ON \
    -DTRITON_ENABLE_GPU=OFF -DTRITON_ENABLE_METRICS_GPU=OFF -DTRITON_ENABLE_TRACING=OFF -DTRITON_ENABLE_NVTX=OFF \
    -DTRITON_ENABLE_MALI_GPU=OFF -DTRITON_ENABLE_SAGEMAKER=OFF -DTRITON_ENABLE_VERTEX_AI=OFF -DTRITON_ENABLE_GCS=OFF \
    -DTRITON_ENABLE_S3=OFF -DTRITON_ENABLE_AZURE_STORAGE=OFF -DTRITON_ENABLE_TENSORRT=OFF -DTRITON_ENABLE_TESTS=OFF
cmake --build /build/b -j "$STAGECRAFT_JOBS"

mkdir -p /build/out/bin /build/out/lib
cp /build/server/bin/tritonserver /build/out/bin/
cp /build/server/lib/libtritonserver.so /build/out/lib/
for file in LICENSE TRITON_VERSION; do
    [ ! -f "/build/csrc/src/$file" ] || cp "/build/csrc/src/$file" /build/out/
done
echo "$TRITON_VERSION" > /build/out/TRITON_VERSION
chmod 755 /build/out/bin/tritonserver
chmod 644 /build/out/lib/libtritonserver.so
strip_files /build/out/bin/tritonserver /build/out/lib/libtritonserver.so
