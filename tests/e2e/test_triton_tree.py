"""The server tree under a real dynamic loader: programs compiled here, places and RPATHs as in nvidia-pytriton."""

import platform
import subprocess
import tarfile
from pathlib import Path

import pytest

from assemble.triton_tree import build
from cache.build import BuildContext
from cache.store import Store
from tests.support.gates import LAYOUT
from tests.support.pytriton import DEEP, SHALLOW, make_pytriton

ROOT = "opt/tritonserver"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

SOURCES = {
    "cudart": "const char *cudart(void) { return \"cudart\"; }",
    "archive": "const char *archive(void) { return \"archive\"; }",
    "server": "const char *cudart(void); const char *server(void) { return cudart(); }",
    "backend": "const char *server(void), *archive(void);\n"
               "const char *backend(void) { return archive()[0] == 'a' && server()[0] == 'c' ? \"backend\" : 0; }",
    "main": "#include <dlfcn.h>\n#include <stdio.h>\nconst char *server(void);\n"
            "int main(int n, char **a) { void *b = dlopen(a[1], RTLD_NOW); if (!b) { puts(dlerror()); return 1; }\n"
            "const char *(*f)(void) = dlsym(b, \"backend\"); printf(\"%s %s\\n\", server(), f()); }",
    "stub": "#include <stdio.h>\nconst char *cudart(void); int main(void) { puts(cudart()); }",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Members of the wheel, compiled: RPATH and not RUNPATH, as in the real one."""
    work = tmp_path_factory.mktemp("parts")

    def compiled(source: str, name: str, *options: str) -> bytes:
        (work / f"{source}.c").write_text(SOURCES[source])
        subprocess.run(["gcc", "-o", name, f"{source}.c", "-Wl,--disable-new-dtags", *options], cwd=work, check=True)
        return (work / name).read_bytes()

    def library(source: str, name: str, *options: str) -> bytes:
        return compiled(source, name, "-shared", "-fPIC", f"-Wl,-soname,{name}", *options)

    libs, tree = "nvidia_pytriton.libs", "pytriton/tritonserver"
    cudart, archive, server = "libcudart-a1.so.12", "libarchive-c3.so.13", "libtritonserver-b2.so"
    found = {f"{libs}/{cudart}": library("cudart", cudart), f"{libs}/{archive}": library("archive", archive)}
    found[f"{libs}/{server}"] = library("server", server, cudart, "-Wl,--enable-new-dtags", "-Wl,-rpath,${ORIGIN}")
    found[f"{tree}/backends/python/libtriton_python.so"] = library(
        "backend", "libtriton_python.so", server, archive, f"-Wl,-rpath,{DEEP}", "-Wl,--allow-shlib-undefined")
    found[f"{tree}/bin/tritonserver"] = compiled(
        "main", "tritonserver", server, f"-Wl,-rpath,{SHALLOW}", "-Wl,--allow-shlib-undefined")
    found[f"{tree}/python_backend_stubs/3.11/triton_python_backend_stub"] = compiled(
        "stub", "stub", cudart, f"-Wl,-rpath,{DEEP}")
    return found


def test_programs_find_their_libraries_without_help(parts: dict[str, bytes], tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    machine = platform.machine()
    wheel = make_pytriton(tmp_path, machine=machine, files=parts)
    inputs = {"wheel": store.put(wheel.read_bytes()).digest, "layout": store.put(LAYOUT.read_bytes()).digest}
    layer = build(BuildContext(store, {"python": "3.11", "root": ROOT, "version": "0.7.0"}, inputs,
                               {"os": "linux", "architecture": ARCHITECTURES[machine]}))["layer"]
    with tarfile.open(store.path_of(layer.digest)) as tar:
        tar.extractall(tmp_path / "image", filter="fully_trusted")
    tree = tmp_path / "image" / ROOT

    def output(*command: Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env={}).stdout

    assert output(tree / "bin/tritonserver", tree / "backends/python/libtriton_python.so") == "cudart backend\n"
    assert output(tree / "backends/python/triton_python_backend_stub") == "cudart\n"
