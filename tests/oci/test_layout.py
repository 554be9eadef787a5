import json
import os
import threading
from pathlib import Path

import pytest

from cache.errors import InputError
from cache.gc import collect
from cache.store import Store, hex_of
from oci.contents import read_image
from oci.layout import link_result, write_layout
from tests.support.images import sample


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def blobs_of(layout: Path) -> set[str]:
    return {path.name for path in (layout / "blobs" / "sha256").iterdir()}


def test_a_layout_links_every_blob_relatively(store: Store, tmp_path: Path) -> None:
    made = sample(store)
    bill = store.put(b"{}")
    path = write_layout(store, made["manifest"].digest, name="one", extra={"sbom.spdx.json": bill.digest})
    assert path == tmp_path / "store" / "images" / "one"
    image = read_image(store, made["manifest"].digest)
    assert blobs_of(path) == {hex_of(blob.digest) for blob in image.blobs()}
    for blob in image.blobs():
        link = path / "blobs" / "sha256" / hex_of(blob.digest)
        assert not os.readlink(link).startswith("/")
        assert link.resolve() == store.path_of(blob.digest).resolve()
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((path / "index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [made["manifest"].digest]
    assert index["manifests"][0]["platform"] == {"os": "linux", "architecture": "arm64", "variant": "v8"}
    assert (path / "sbom.spdx.json").read_bytes() == b"{}"


def test_a_store_may_be_moved_with_its_layouts(store: Store, tmp_path: Path) -> None:
    made = sample(store)
    write_layout(store, made["manifest"].digest, name="one")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for link in (tmp_path / "elsewhere" / "images" / "one" / "blobs" / "sha256").iterdir():
        assert link.exists()


def test_a_layout_is_renewed_in_place_without_strays(store: Store) -> None:
    first = sample(store, environment={"A": "1"})
    second = sample(store, environment={"A": "2"})
    old = store.put(b"old").digest
    path = write_layout(store, first["manifest"].digest, name="one", extra={"sbom.spdx.json": old})
    inode = path.stat().st_ino
    (path / "blobs" / "sha256" / hex_of(second["config"].digest)).symlink_to("nowhere")
    assert write_layout(store, second["manifest"].digest, name="one") == path
    assert path.stat().st_ino == inode
    assert blobs_of(path) == {hex_of(blob.digest) for blob in read_image(store, second["manifest"].digest).blobs()}
    assert (path / "blobs" / "sha256" / hex_of(second["config"].digest)).exists()
    assert sorted(entry.name for entry in path.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_what_a_killed_writer_left_is_no_obstacle(store: Store) -> None:
    made = sample(store)
    left = store.root / "images" / ".one.new"
    left.mkdir(parents=True)
    (left / "junk").write_text("x")
    path = write_layout(store, made["manifest"].digest, name="one")
    assert not (path / "junk").exists()
    assert sorted(entry.name for entry in (store.root / "images").iterdir()) == ["one"]


def test_many_writers_of_one_layout_agree(store: Store) -> None:
    made = [sample(store, environment={"A": str(number)}) for number in range(2)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                write_layout(Store.open(store.root), made[number % 2]["manifest"].digest, name="one")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    path = store.root / "images" / "one"
    index = json.loads((path / "index.json").read_bytes())
    assert (path / "blobs" / "sha256" / hex_of(index["manifests"][0]["digest"])).exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a b"])
def test_a_name_that_leaves_the_directory_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        write_layout(store, sample(store)["manifest"].digest, name=name)


def test_the_result_link_is_replaced_and_rooted(store: Store, tmp_path: Path) -> None:
    link = tmp_path / "result-one"
    layouts = []
    for value in ("1", "2"):
        made = sample(store, environment={"A": value})
        layouts.append(write_layout(store, made["manifest"].digest, name=f"one-{value}"))
        link_result(store, layouts[-1], link, root="one", content={"keys": [], "blobs": [made["manifest"].digest]})
        assert link.resolve() == layouts[-1].resolve()
        assert store.roots()["one"] == {"keys": [], "blobs": [made["manifest"].digest], "link": str(link),
                                        "points_to": str(layouts[-1])}
        assert os.readlink(link) == store.roots()["one"]["points_to"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result-one", "store"]


def test_a_directory_in_the_way_of_the_link_is_left_alone(store: Store, tmp_path: Path) -> None:
    link = tmp_path / "result-one"
    link.mkdir()
    (link / "mine").write_text("x")
    layout = write_layout(store, sample(store)["manifest"].digest, name="one")
    with pytest.raises(InputError, match="in the way"):
        link_result(store, layout, link, root="one", content={"keys": [], "blobs": []})
    assert (link / "mine").exists()
    assert "one" not in store.roots()


def test_layouts_of_a_shared_store_can_be_renewed_by_the_group(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    shared_store = Store.open(shared)
    before = os.umask(0o077)
    try:
        made = sample(shared_store)
        path = write_layout(shared_store, made["manifest"].digest, name="thor-1")
    finally:
        os.umask(before)
    for directory in (path.parent, path, path / "blobs", path / "blobs" / "sha256"):
        assert directory.stat().st_mode & 0o2070 == 0o2070, directory


@pytest.mark.parametrize("stop", ["before the link", "after the link"])
def test_a_kill_while_the_link_moves_loses_neither_image(store: Store, tmp_path: Path, stop: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    link, manifests, layouts = tmp_path / "result-one", [], []
    for value in ("1", "2"):
        made = sample(store, environment={"A": value})
        manifests.append(made["manifest"].digest)
        layouts.append(write_layout(store, manifests[-1], name=f"one-{value}"))

    def put(number: int) -> None:
        link_result(store, layouts[number], link, root="one", content={"keys": [], "blobs": [manifests[number]]})

    class Killed(BaseException):
        pass

    put(0)
    move, root = Path.replace, Store.set_root
    calls: list[str] = []

    def replace(self: Path, target: Path) -> Path:
        if stop == "before the link" and target == link:
            raise Killed
        return move(self, target)

    def set_root(self: Store, name: str, content: dict[str, object]) -> None:
        calls.append(name)
        if stop == "after the link" and len(calls) == 2:
            raise Killed
        root(self, name, content)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Store, "set_root", set_root)
    with pytest.raises(Killed):
        put(1)
    monkeypatch.undo()
    elsewhere = Store.open(store.root)
    store._session.__init__(str(store.root), str(store.root / "tmp"))  # type: ignore[misc]
    collect(elsewhere, now=2e9)
    assert (link / "index.json").exists()
    for manifest in manifests:
        assert elsewhere.has(manifest)
    put(1)
    assert "was" not in (store.root_named("one") or {})
    assert os.readlink(link) == str(layouts[1])
