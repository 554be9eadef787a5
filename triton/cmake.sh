# What the scripts of Triton's pieces share: sourced, not run. docs/serving.md, "Where Triton comes from".

export PATH="/cross/bin:/cross/python/cmake/data/bin:/cross/python/bin:$PATH" PYTHONPATH=/cross/python
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-315532800}"

fail() { # message, expected, found
    printf '%s: %s\n  expected: %s\n  found: %s\n' "$NAME" "$1" "$2" "$3" >&2
    exit 1
}

# A copy of everything that was locked, which CMake may write into.
unpack() {
    cp -a /inputs/csrc /build/csrc
    chmod -R u+w /build/csrc
    mkdir -p /build/csrc/sources
}

# Tests would fetch googletest, by an address without a hash. They are configured and never built, so names will do.
no_googletest() {
    mkdir /build/googletest
    cat > /build/googletest/CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.17)
project(googletest NONE)
foreach(name gtest gtest_main gmock gmock_main)
  add_library(${name} INTERFACE)
  add_library(GTest::${name} ALIAS ${name})
endforeach()
END
}

# A project inside another is built whole, so its tests must not be there at all.
no_tests() {
    find /build/csrc/src /build/csrc/sources/repo-* -name CMakeLists.txt -exec \
        sed -i -E 's/^([[:space:]]*)add_subdirectory\([[:space:]]*test[[:space:]]*(test)?[[:space:]]*\)/\1# &/' {} +
}

# Every compile, also of a project inside another, which knows of the outer one this file alone: the compilers, flags that
# keep paths out of the result, and where each pinned source lies.
toolchain() {
    same="-ffile-prefix-map=/build=/usr/src/build -ffile-prefix-map=/build/csrc=/usr/src/triton" # the last that fits counts
    {
        for tool in "C_COMPILER gcc" "CXX_COMPILER g++" "AR ar" "RANLIB ranlib" "LINKER ld" "STRIP strip" "NM nm"; do
            echo "set(CMAKE_${tool% *} /cross/bin/${tool#* })"
        done
        echo 'set(CMAKE_SKIP_BUILD_RPATH ON)'
        echo "set(CMAKE_C_FLAGS_INIT \"$same\")"
        echo "set(CMAKE_CXX_FLAGS_INIT \"$same\")"
        if [ -n "${STAGECRAFT_CCACHE:-}" ]; then
            echo "set(CMAKE_C_COMPILER_LAUNCHER $STAGECRAFT_CCACHE)"
            echo "set(CMAKE_CXX_COMPILER_LAUNCHER $STAGECRAFT_CCACHE)"
        fi
        echo 'set(FETCHCONTENT_FULLY_DISCONNECTED ON CACHE BOOL "" FORCE)'
        for place in /build/csrc/sources/* /build/googletest; do
            [ -d "$place" ] || continue
            name=$(basename "$place" | tr '[:lower:]' '[:upper:]')
            echo "set(FETCHCONTENT_SOURCE_DIR_$name $place CACHE PATH \"\" FORCE)"
        done
    } > /build/toolchain.cmake
}

# Repositories for what projects inside clone: each tree as one commit under the tag that they ask for. Submodules lie in their
# places, so there is nothing more to clone. Git's configuration leads their addresses here.
clones() {
    export PATH="$PATH:/cross/usr/bin" GIT_CONFIG_GLOBAL=/build/gitconfig GIT_CONFIG_NOSYSTEM=1
    [ -d /usr/lib/git-core ] || export GIT_EXEC_PATH=/cross/usr/lib/git-core
    export GIT_AUTHOR_NAME=stagecraft GIT_AUTHOR_EMAIL=stagecraft@invalid GIT_COMMITTER_NAME=stagecraft
    export GIT_COMMITTER_EMAIL=stagecraft@invalid GIT_AUTHOR_DATE="@$SOURCE_DATE_EPOCH +0000"
    export GIT_COMMITTER_DATE="$GIT_AUTHOR_DATE"
    git config --global safe.directory '*'
    git config --global protocol.file.allow always
    git config --global advice.detachedHead false
    git config --global init.defaultBranch main
    echo "$CLONES" | while read -r name repository tag; do
        [ -n "$name" ] || continue
        place=/build/csrc/sources/$name
        git -C "$place" init --quiet
        git -C "$place" add --all --force
        git -C "$place" commit --quiet --no-verify --message "$tag"
        git -C "$place" tag "$tag"
        git config --global "url.file://$place.insteadOf" "$repository"
    done
}

# Archives that projects inside download by address: the address becomes the file, the hash stays what they check.
archives() {
    for file in /inputs/files/*; do
        grep -rlE "https?://[^\"]*/${file##*/}\"" --include=CMakeLists.txt /build/csrc/sources | while read -r project; do
            sed -i "s|https\\?://[^\"]*/${file##*/}\"|file://$file\"|" "$project"
        done
    done
}

# The options that make the same bytes wherever it is built; more are the caller's.
configure() { # source, build, RUNPATH of what is made, more…
    from=$1 to=$2 runpath=$3
    shift 3
    cmake -G Ninja -S "$from" -B "$to" -DCMAKE_TOOLCHAIN_FILE=/build/toolchain.cmake -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_EXPORT_NO_PACKAGE_REGISTRY=ON -DCMAKE_SKIP_BUILD_RPATH=ON -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
        "-DCMAKE_INSTALL_RPATH=$runpath" -DPYTHON_EXECUTABLE="$PYTHON" -DPython_EXECUTABLE="$PYTHON" \
        -DPython3_EXECUTABLE="$PYTHON" "$@"
}

# What only a debugger reads, and the name of the compiler's package.
strip_files() { # file…
    /cross/bin/strip --strip-unneeded --remove-section=.comment "$@"
}
