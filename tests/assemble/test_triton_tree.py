"""Triton's server tree: the places that Triton expects, libraries found without altering ELF files, one stub."""

import json
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml

from assemble.triton_tree import build
from cache.archive import LayerReader
from cache.build import BuildContext
from cache.errors import IntegrityError, StageError
from cache.store import Blob, Store
from checks.elf import Elf, read_elf
from tests.support.pytriton import make_pytriton, stub_of
from tests.support.wheel_factory import make_wheel

ROOT = "opt/tritonserver"
LAYOUT = Path(__file__).resolve().parents[2] / "triton" / "pytriton-layout.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def assemble(store: Store, wheel: Path, python: str = "3.11", version: str = "0.7.0",
             architecture: str = "arm64") -> Mapping[str, Blob]:
    inputs = {"wheel": store.put(wheel.read_bytes()).digest, "layout": store.put(LAYOUT.read_bytes()).digest}
    return build(BuildContext(store, {"python": python, "root": ROOT, "version": version}, inputs,
                              {"os": "linux", "architecture": architecture}))


def real_path(layer: LayerReader, path: str) -> str:
    entry = layer.resolve(path)
    assert entry is not None, path
    return str(entry["path"])


def loads(layer: LayerReader, start: str) -> list[str]:
    """What the dynamic loader of glibc would find for a program started by that path; "?name" where it finds nothing.

    Only the bundle counts: an RPATH of the object and of those that loaded it, unless it has a RUNPATH. A program's
    $ORIGIN is its real directory, a library's the directory by which it was opened.
    """
    def elf(path: str) -> Elf:
        with layer.open(path) as stream:
            found = read_elf(stream)
        assert found is not None
        return found

    loaded: dict[str, str] = {}
    waiting = [(real_path(layer, start), ())]  # type: list[tuple[str, tuple[tuple[str, Elf], ...]]]
    while waiting:
        path, loaders = waiting.pop(0)
        this = elf(path)
        chain = ((path, this), *loaders)
        by_rpath = () if this.runpath else chain
        directories = [(origin, item) for origin, one in by_rpath if not one.runpath for item in one.rpath]
        directories += [(path, item) for item in this.runpath]
        for name in this.needed:
            if name in loaded or not ("-" in name.split(".so")[0] or "python" in name):
                continue  # there already, or of the base image
            for origin, item in directories:
                place = item.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", origin.rpartition("/")[0])
                entry = layer.resolve(f"{place}/{name}")
                if entry is not None and entry["type"] == "file":
                    loaded[name] = f"{place}/{name}"
                    waiting.append((loaded[name], chain))
                    break
            else:
                loaded[name] = f"?{name}"
    return sorted(loaded.values())


def test_every_library_is_found_from_its_final_place(store: Store, tmp_path: Path) -> None:
    outputs = assemble(store, make_pytriton(tmp_path))
    with LayerReader(store, outputs["index"].digest) as layer:
        server = loads(layer, f"{ROOT}/bin/tritonserver")
        assert [path.rpartition("/")[2] for path in server] == ["libcudart-a1.so.12", "libtritonserver-b2.so"]
        stub = loads(layer, f"{ROOT}/backends/python/triton_python_backend_stub")
        assert stub == ["?libpython3.11.so.1.0", f"{ROOT}/pytriton/tritonserver/backends/python/../../../../"
                        "nvidia_pytriton.libs/libcudart-a1.so.12"]  # libpython is the base image's
        backend = loads(layer, f"{ROOT}/backends/python/libtriton_python.so")
        assert len(backend) == 4
        assert not [path for path in backend if path.startswith("?")]


def test_only_the_stub_of_the_images_python(store: Store, tmp_path: Path) -> None:
    wheel = make_pytriton(tmp_path)
    for python, bundled in (("3.11", 0), ("3.13", 1)):
        with LayerReader(store, assemble(store, wheel, python)["index"].digest) as layer:
            stubs = [path for path in layer.entries if path.endswith("/triton_python_backend_stub")]
            assert len(stubs) == 1
            assert layer.read(stubs[0]) == stub_of(python)
            assert sum("libpython" in path for path in layer.entries) == bundled


def test_places_modes_and_nothing_else(store: Store, tmp_path: Path) -> None:
    with LayerReader(store, assemble(store, make_pytriton(tmp_path))["index"].digest) as layer:
        assert layer.read(f"{ROOT}/TRITON_VERSION") == b"2.51.0\n"
        assert layer.read(f"{ROOT}/LICENSE") == b"Apache\n"
        for path in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
            entry = layer.resolve(f"{ROOT}/{path}")
            assert entry is not None
            assert entry["mode"] == 0o755, path
        assert layer.resolve(f"{ROOT}/caches/local/libtritoncache_local.so") is not None
        assert real_path(layer, f"{ROOT}/lib/libtritonserver.so").endswith("/libtritonserver-b2.so")
        for path in ("backends", "caches"):  # other layers add to these
            assert layer.entries[f"{ROOT}/{path}"]["type"] == "directory"
        assert not [path for path in layer.entries if path.endswith("__init__.py") or "dist-info" in path]
        assert all(path == "opt" or path.startswith(ROOT) for path in layer.entries)


def test_a_python_without_a_stub(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no stub for Python 3\.14") as caught:
        assemble(store, make_pytriton(tmp_path), "3.14")
    assert caught.value.expected == "one of 3.10, 3.11, 3.13"


def test_a_version_that_is_not_known(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"nvidia-pytriton 0\.9\.0 is not known"):
        assemble(store, make_pytriton(tmp_path, version="0.9.0"), version="0.9.0")


def test_another_version_than_locked(store: Store, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="another version") as caught:
        assemble(store, make_pytriton(tmp_path, version="0.6.0"))
    assert (caught.value.expected, caught.value.found) == ("0.7.0", "0.6.0")


def test_another_machine_and_another_wheel(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="another Python or platform"):
        assemble(store, make_pytriton(tmp_path, machine="x86_64"))
    with pytest.raises(IntegrityError, match="another wheel"):
        assemble(store, make_wheel(tmp_path, "other", "0.7.0"))


@pytest.mark.parametrize("member", ["pytriton/tritonserver/bin/tritonserver",
                                    "nvidia_pytriton.libs/libtritonserver-b2.so"])
def test_a_part_that_the_wheel_lacks(store: Store, tmp_path: Path, member: str) -> None:
    with pytest.raises(IntegrityError, match="the wheel") as caught:
        assemble(store, make_pytriton(tmp_path, files={member: None}))
    assert "nvidia_pytriton-0.7.0" in str(caught.value.where)


def test_packages_name_the_server(store: Store, tmp_path: Path) -> None:
    wheel = make_pytriton(tmp_path)
    packages = json.loads(store.read(assemble(store, wheel)["packages"].digest))
    schema = Path(__file__).resolve().parents[2] / "docs" / "formats" / "packages.schema.json"
    jsonschema.validate(packages, json.loads(schema.read_text(encoding="utf-8")), jsonschema.Draft202012Validator)
    (found,) = packages["packages"]
    assert (found["type"], found["name"], found["version"]) == ("generic", "triton-inference-server", "2.51.0")
    assert found["file"] == wheel.name


def test_python_backend_of_another_layer_is_left_out(store: Store, tmp_path: Path) -> None:
    wheel = make_pytriton(tmp_path)
    layout = {**yaml.safe_load(LAYOUT.read_text()), "without": ["pytriton/tritonserver/backends/python/"]}
    layout["links"].pop("backends/python")
    made = build(BuildContext(store, {"python": "3.12", "root": ROOT, "version": "0.7.0"},  # it has no stub for it
                              {"wheel": store.put(wheel.read_bytes()).digest,
                               "layout": store.put(yaml.safe_dump(layout).encode()).digest},
                              {"os": "linux", "architecture": "arm64"}))
    with LayerReader(store, made["index"].digest) as layer:
        assert not [path for path in layer.entries if "backends/python" in path]
        assert layer.resolve(f"{ROOT}/bin/tritonserver")
        assert layer.resolve(f"{ROOT}/lib/libtritonserver.so")
