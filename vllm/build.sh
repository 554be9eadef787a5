# Compiles vLLM's extensions for one device, with vLLM's own setup.py, from locked sources and without a network.
#
# What it finds and leaves: docs/vllm-from-source.md, "The recipe". The same on the target's own machine and on another one,
# where Python, CMake and ninja are emulated and the compilers below /cross are not.
# For machines that cannot compile all of it: EXTENSIONS, names of extensions ("_moe_C_stable_libtorch cumem_allocator");
# OBJECTS, patterns of object files, which are compiled and left in /build/out/objects, and nothing is linked.
set -eu

site=/$SITE
major=${CUDA_VERSION%%.*}
libraries=$site/nvidia/cu$major
toolkit=/cross/toolkit/nvidia/cu$major
above=${SITE%/*}
python=$(command -v "${above##*/}")
cuda=/build/cuda
torch=${TORCH_VERSION%%+*}

fail() { # message, expected, found
    printf 'build.sh: %s\n  expected: %s\n  found: %s\n' "$1" "$2" "$3" >&2
    exit 1
}

# One toolkit of two machines: programs that run here, libraries of the target. nvcc finds its parts beside itself, so it is
# copied. Headers are of the toolkit where it has them: another release of CCCL or of crt would not fit its compiler.
make_cuda() {
    mkdir -p "$cuda/lib64/stubs" "$cuda/targets"
    cp -a "$toolkit/bin" "$toolkit/nvvm" "$toolkit/include" "$cuda/"
    for header in "$libraries"/include/*; do
        [ -e "$cuda/include/${header##*/}" ] || ln -s "$header" "$cuda/include/${header##*/}"
    done
    for library in "$libraries"/lib/*; do
        [ -f "$library" ] || continue
        name=${library##*/}
        ln -s "$library" "$cuda/lib64/$name"
        case $name in
            *.so.*) [ -e "$cuda/lib64/${name%%.so.*}.so" ] || ln -s "$name" "$cuda/lib64/${name%%.so.*}.so" ;;
        esac
    done
    ln -s lib64 "$cuda/lib"
    for machine in x86_64-linux sbsa-linux; do # where nvcc and CMake look, by the machine that they take this one for
        mkdir "$cuda/targets/$machine"
        ln -s ../../include "$cuda/targets/$machine/include"
        ln -s ../../lib64 "$cuda/targets/$machine/lib"
    done
    # The driver's library is the device's: what is linked against it here has its names and nothing else.
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$cuda/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' > /build/driver.c
    /cross/bin/gcc -shared -nostdlib -Wl,-soname,libcuda.so.1 -o "$cuda/lib64/stubs/libcuda.so" /build/driver.c
}

# A CPU build of torch would silently make a CPU build of vLLM, another major release of CUDA one that cannot be loaded.
check_torch() {
    found=$("$python" -c 'import torch; print(torch.__version__.split("+")[0], torch.version.cuda)')
    [ "${found% *}" = "$torch" ] || fail "another torch than the target's" "$torch" "${found% *}"
    found=${found#* }
    case $found in
        "$major".*) ;;
        *) fail "torch is compiled for another CUDA" "CUDA $major, as CUDA_VERSION $CUDA_VERSION says" "$found" ;;
    esac
}

check_nvcc() {
    found=$("$cuda/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')
    [ "$found" = "$(echo "$CUDA_VERSION" | cut -d. -f1,2)" ] || fail "another nvcc" "CUDA $CUDA_VERSION" "$found"
}

setup() {
    if [ -n "${EXTENSIONS:-}${OBJECTS:-}" ]; then
        "$python" /inputs/files/setup_in_part.py "$@"
    else
        "$python" setup.py "$@"
    fi
}

# Symbols that only a debugger reads have the compiler's process id in them, the comment says which of Debian's packages of
# one and the same compiler it was.
strip_libraries() {
    find /build/out -name '*.so' -type f | while read -r library; do
        /cross/bin/strip --strip-unneeded "$library"
        /cross/bin/objcopy --remove-section=.comment "$library"
    done
}

# dist_info writes what an installer reads, but for WHEEL, which belongs to the archive.
write_metadata() {
    mkdir /build/metadata
    "$python" setup.py --quiet dist_info --output-dir /build/metadata
    info=/build/out/$NAME-$VERSION.dist-info
    [ -d "/build/metadata/${info##*/}" ] || fail "metadata of another version" "${info##*/}" "$(ls /build/metadata)"
    mkdir "$info"
    for file in METADATA entry_points.txt top_level.txt; do
        [ ! -f "/build/metadata/${info##*/}/$file" ] || cp "/build/metadata/${info##*/}/$file" "$info/$file"
    done
    sed -n 's/^License-File: //p' "$info/METADATA" | while read -r file; do
        install -D -m 644 "$file" "$info/licenses/$file"
    done
    grep -q "^Requires-Dist: torch *== *$torch\$" "$info/METADATA" ||
        fail "the package requires another torch than it is compiled against" "Requires-Dist: torch==$torch" \
            "$(grep '^Requires-Dist: torch\b' "$info/METADATA" || echo none)"
    printf 'Wheel-Version: 1.0\nGenerator: stagecraft\nRoot-Is-Purelib: false\nTag: cp38-abi3-linux_%s\n\n' \
        "$(uname -m)" > "$info/WHEEL"
}

# torch is imported again and again, and what Python makes of it on the way is kept: under an emulator it takes most of the time.
export PYTHONPATH=/cross/python PYTHONPYCACHEPREFIX=/build/pycache
check_torch

# CMake writes into the tree (generators, _version.py); paths are in device code's names, so this one is always the same.
cp -a /inputs/csrc/src /build/src
chmod -R u+w /build/src
make_cuda
check_nvcc

# /cross/usr/bin has `patch`, which vLLM's CMake calls.
export PATH="/cross/bin:$cuda/bin:/cross/python/cmake/data/bin:/cross/python/bin:$PATH:/cross/usr/bin"
export CC=/cross/bin/gcc CXX=/cross/bin/g++ CUDAHOSTCXX=/cross/bin/g++ CUDA_HOME=$cuda CUDACXX=$cuda/bin/nvcc
export LC_ALL=C SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-315532800}"
# nvcc names temporary files, and things in device code, after its process id.
export NVCC_APPEND_FLAGS="-frandom-seed=$NAME -objtemp"
export FETCHCONTENT_BASE_DIR=/build/fetched
export CMAKE_BUILD_TYPE=Release MAX_JOBS="$STAGECRAFT_JOBS" NVCC_THREADS=1
export VLLM_TARGET_DEVICE=cuda VLLM_VERSION_OVERRIDE="$VERSION" VLLM_DISABLE_SCCACHE=1
CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_AR=/cross/bin/ar -DCMAKE_RANLIB=/cross/bin/ranlib -DCMAKE_LINKER=/cross/bin/ld"
CMAKE_ARGS="$CMAKE_ARGS -DCUDA_TOOLKIT_ROOT_DIR=$cuda"
if [ -n "${STAGECRAFT_CCACHE:-}" ]; then
    for language in C CXX CUDA; do
        CMAKE_ARGS="$CMAKE_ARGS -DCMAKE_${language}_COMPILER_LAUNCHER=$STAGECRAFT_CCACHE"
    done
fi
export CMAKE_ARGS

cd /build/src
mkdir /build/out
setup build_ext --build-lib /build/lib --build-temp /build/temp
if [ -n "${OBJECTS:-}" ]; then
    exit 0
fi
cp -a /build/lib/. /build/out/
cp vllm/_version.py /build/out/vllm/_version.py
strip_libraries
write_metadata
