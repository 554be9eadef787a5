"""Reading indexes and locating wheels on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from cache.errors import FetchError, IntegrityError
from cache.store import Store
from lock.fetch import Wanted, fetch
from lock.indexes import Indexes, load_indexes
from lock.simple import IndexFile, Pages, WheelSource, parse_html, parse_json, project_of
from tests.support.index_server import IndexServer, Options, client_environment, write_indexes
from tests.support.wheel_factory import make_wheel, sha256_of

PAGE = "https://index.example/simple/foo/"


def test_html_of_pep_503() -> None:
    found = parse_html("""<!DOCTYPE html><html><head><base href="/other/"></head><body>
        <a href="../files/foo-1.0-py3-none-any.whl#sha256=AB12">what it says here does not matter</a>
        <a href="https://cdn.example/foo-1.1%2Bcu130-py3-none-any.whl" data-requires-python="&gt;=3.9"
           data-yanked="broken" data-core-metadata="sha256=77">x</a>
        <a href="foo-2.tar.gz#md5=99" data-yanked data-dist-info-metadata="true">x</a>
        <a>no link</a><a href="sub/">a directory</a>""", PAGE)
    assert found == [
        IndexFile("foo-1.0-py3-none-any.whl", "https://index.example/files/foo-1.0-py3-none-any.whl", "ab12"),
        IndexFile("foo-1.1+cu130-py3-none-any.whl", "https://cdn.example/foo-1.1%2Bcu130-py3-none-any.whl",
                  requires_python=">=3.9", yanked="broken", metadata="77"),
        IndexFile("foo-2.tar.gz", "https://index.example/other/foo-2.tar.gz", yanked="", metadata=""),
    ]


def test_json_of_pep_691() -> None:
    found = parse_json({"meta": {"api-version": "1.1"}, "name": "foo", "files": [
        {"filename": "foo-1.0-py3-none-any.whl", "url": "../../f/foo-1.0-py3-none-any.whl", "hashes": {"sha256": "AB"},
         "size": 12, "requires-python": ">=3.9", "yanked": False, "upload-time": "2026-01-02T00:00:00Z",
         "core-metadata": {"sha256": "77"}},
        {"filename": "foo-2.tar.gz", "url": "https://u:p@cdn.example/foo-2.tar.gz", "hashes": {}, "yanked": "bad",
         "core-metadata": True},
        {"filename": "foo-3.zip", "url": "foo-3.zip", "hashes": {}, "yanked": True, "requires-python": None},
    ]}, PAGE)
    assert found == [
        IndexFile("foo-1.0-py3-none-any.whl", "https://index.example/f/foo-1.0-py3-none-any.whl", "ab", 12, ">=3.9",
                  None, "2026-01-02T00:00:00Z", "77"),
        IndexFile("foo-2.tar.gz", "https://cdn.example/foo-2.tar.gz", yanked="bad", metadata=""),
        IndexFile("foo-3.zip", "https://index.example/simple/foo/foo-3.zip", yanked=""),
    ]


@pytest.mark.parametrize("data", [[], {}, {"files": [{}]}, {"files": [{"filename": "../evil.whl", "url": "x"}]},
                                  {"files": [{"filename": "a/b.whl", "url": "x"}]}, {"files": 3}])
def test_json_that_is_something_else(data: object) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_json(data, PAGE)


def test_a_link_cannot_name_a_path() -> None:
    assert parse_html('<a href="..%2F..%2Fevil.whl">x</a><a href="a%5Cb.whl">x</a><a href="..">x</a>', PAGE) == []


@pytest.mark.parametrize(("file", "project"), [
    ("Foo_Bar.baz-1.0-py3-none-any.whl", "foo-bar-baz"), ("foo-bar-1.0.tar.gz", "foo-bar"), ("foo-1.zip", "foo"),
    ("index.html", "")])
def test_project_of(file: str, project: str) -> None:
    assert project_of(file) == project


# -- against a server -----------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Path:
    directory = tmp_path / "served"
    make_wheel(directory, "Foo.Bar", "1.0")
    make_wheel(directory, "Foo.Bar", "1.1")
    make_wheel(directory / "deep", "other", "1.0")
    return directory


@pytest.fixture
def server(served: Path) -> Iterator[IndexServer]:
    with IndexServer(served) as server:
        yield server


def indexes_for(tmp_path: Path, entries: dict[str, dict[str, str]], **env: str) -> Indexes:
    return load_indexes(write_indexes(tmp_path / "indexes.yaml", entries), client_environment(tmp_path, **env))


def mirror(tmp_path: Path, server: IndexServer, **env: str) -> Indexes:
    return indexes_for(tmp_path, {"mirror": {"type": "simple", "url": server.url}}, **env)


def wanted_of(path: Path, index: str = "mirror", **more: object) -> Wanted:
    name, version = path.name.split("-")[:2]
    fields = {"kind": "wheel", "name": name, "version": version, "file": path.name, "size": path.stat().st_size,
              "sha256": sha256_of(path), "index": index}
    return Wanted(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("as_json", [True, False])
def test_files_of_a_project(tmp_path: Path, server: IndexServer, served: Path, as_json: bool) -> None:
    server.options.json = as_json
    files = Pages(mirror(tmp_path, server)).files("mirror", "foo_BAR")
    assert [item.file for item in files] == ["Foo_Bar-1.0-py3-none-any.whl", "Foo_Bar-1.1-py3-none-any.whl"]
    path = served / files[0].file
    assert (files[0].sha256, files[0].size) == (sha256_of(path), path.stat().st_size if as_json else 0)
    assert server.paths() == ["/simple/foo-bar/"]


def test_no_such_project(tmp_path: Path, server: IndexServer) -> None:
    assert Pages(mirror(tmp_path, server)).files("mirror", "nothing") == ()


def test_a_page_is_read_once_by_many_threads(tmp_path: Path, server: IndexServer) -> None:
    pages = Pages(mirror(tmp_path, server))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: pages.files("mirror", "other"), range(64)))
    assert len({id(item) for files in found for item in files}) == 1
    assert server.count("/simple/other/") == 1


def test_a_page_that_failed_is_read_again(tmp_path: Path, server: IndexServer) -> None:
    pages = Pages(mirror(tmp_path, server))
    server.fault("/simple/other/", "error", value=403)
    with pytest.raises(FetchError):
        pages.files("mirror", "other")
    server.heal()
    assert len(pages.files("mirror", "other")) == 1


def test_a_server_that_fails_for_a_moment(tmp_path: Path, server: IndexServer) -> None:
    server.fault("/simple/other/", "error", times=1)
    server.fault("/other/", "reset", times=1)
    assert len(Pages(mirror(tmp_path, server)).files("mirror", "other")) == 1
    assert server.count("/simple/other/") == 3


@pytest.mark.parametrize(("status", "words"), [(403, "netrc"), (503, "STAGECRAFT_INDEX_MIRROR")])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, server: IndexServer, status: int, words: str) -> None:
    server.fault("/simple/other/", "error", value=status)
    with pytest.raises(FetchError, match="index mirror cannot be read") as caught:
        Pages(mirror(tmp_path, server)).files("mirror", "other")
    error = caught.value
    assert f"status {status}" in str(error.found)
    assert words in str(error.cure)
    assert f"{server.url}other/" in str(error.where)
    assert "indexes.yaml:5" in str(error.where)


def test_an_index_that_is_down(tmp_path: Path, server: IndexServer) -> None:
    server.stop()
    with pytest.raises(FetchError, match="index mirror cannot be read") as caught:
        Pages(mirror(tmp_path, server)).files("mirror", "other")
    assert caught.value.found == "connection refused"


def test_a_page_that_is_no_page(tmp_path: Path, served: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"message": "log in"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    other = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{other.server_port}/"
    with pytest.raises(FetchError) as caught:
        Pages(indexes_for(tmp_path, {"x": {"type": "simple", "url": url}})).files("x", "foo")
    assert "not a project page" in str(caught.value.found)
    other.shutdown()
    other.server_close()


def test_links_and_directories(tmp_path: Path, server: IndexServer, served: Path) -> None:
    """`default` is find-links only; another index is a page of links; a third a simple index in files."""
    (tmp_path / "files" / "foo-bar").mkdir(parents=True)
    digest = sha256_of(served / "Foo_Bar-1.1-py3-none-any.whl")
    (tmp_path / "files" / "foo-bar" / "index.html").write_text(
        f'<a href="../../served/Foo_Bar-1.1-py3-none-any.whl#sha256={digest}">x</a>')
    indexes = indexes_for(tmp_path, {"page": {"type": "links", "url": server.links},
                                     "local": {"type": "simple", "url": (tmp_path / "files").as_uri()}},
                          PIP_NO_INDEX="1", PIP_FIND_LINKS=str(served))
    pages = Pages(indexes)
    assert [item.file for item in pages.files("default", "foo-bar")] == [
        "Foo_Bar-1.0-py3-none-any.whl", "Foo_Bar-1.1-py3-none-any.whl"]
    assert pages.files("default", "other") == ()  # below a subdirectory
    assert len(pages.files("page", "foo-bar")) == 2
    assert len(pages.files("page", "other")) == 1
    assert server.count("/links/") == 1
    local = pages.files("local", "foo-bar")
    assert [(item.sha256, item.url) for item in local] == [
        (digest, (served / "Foo_Bar-1.1-py3-none-any.whl").as_uri())]
    assert pages.files("local", "other") == ()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="index default cannot be read") as caught:
        Pages(indexes_for(tmp_path, {}, PIP_NO_INDEX="1", PIP_FIND_LINKS="/no/such")).files("default", "foo")
    assert "/no/such" in str(caught.value.where)


# -- the source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_wheels_are_fetched_from_where_their_index_says(
        tmp_path: Path, server: IndexServer, served: Path, links: bool) -> None:
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(served)} if links else {"PIP_INDEX_URL": server.url}
    indexes = indexes_for(tmp_path, {"mirror": {"type": "simple", "url": server.url}}, **env)
    wanted = [wanted_of(served / "Foo_Bar-1.1-py3-none-any.whl", "default"),
              wanted_of(served / "deep" / "other-1.0-py3-none-any.whl")]
    store = Store.open(tmp_path / "store")
    fetch(store, wanted, {"wheel": WheelSource(indexes)})
    assert all(store.has(item.digest, item.size) for item in wanted)
    assert server.count(wanted[0].file) == (0 if links else 1)


def test_of_two_files_of_one_name_the_locked_one(tmp_path: Path, server: IndexServer, served: Path) -> None:
    """The same name on an extra index, with other bytes: the hash decides, not the order."""
    other = tmp_path / "other"
    make_wheel(other, "Foo.Bar", "1.1", files={"foo.py": b"another build\n"})
    with IndexServer(other) as extra:
        indexes = indexes_for(tmp_path, {}, PIP_INDEX_URL=server.url, PIP_EXTRA_INDEX_URL=extra.url)
        for directory, root in ((served, server.root), (other, extra.root)):
            wanted = wanted_of(directory / "Foo_Bar-1.1-py3-none-any.whl", "default")
            assert WheelSource(indexes).locate(wanted).urls == (f"{root}files/{wanted.file}",)


def test_a_replaced_file_is_refused_before_it_is_read(tmp_path: Path, server: IndexServer, served: Path) -> None:
    wanted = wanted_of(served / "Foo_Bar-1.1-py3-none-any.whl", sha256="ab" * 32)
    with pytest.raises(IntegrityError, match=r"index mirror has another file under the name Foo_Bar-1\.1") as caught:
        fetch(Store.open(tmp_path / "store"), [wanted], {"wheel": WheelSource(mirror(tmp_path, server))})
    assert caught.value.expected == "sha256:" + "ab" * 32
    assert sha256_of(served / wanted.file) in str(caught.value.found)
    assert "--upgrade Foo_Bar" in str(caught.value.cure)
    assert server.count(wanted.file) == 0


def test_a_file_that_vanished_from_its_index(tmp_path: Path, server: IndexServer, served: Path) -> None:
    wanted = wanted_of(served / "Foo_Bar-1.0-py3-none-any.whl")
    (served / wanted.file).unlink()
    with pytest.raises(FetchError, match=r"index mirror has no Foo_Bar-1\.0-py3-none-any\.whl any more") as caught:
        WheelSource(mirror(tmp_path, server)).locate(wanted)
    assert "Foo_Bar-1.1-py3-none-any.whl" in str(caught.value.found)


def test_credentials_in_the_clients_configuration(tmp_path: Path, served: Path) -> None:
    with IndexServer(served, auth=("me", "p@ss word")) as server:
        url = server.with_credentials("me", "p%40ss%20word")
        indexes = indexes_for(tmp_path, {}, PIP_INDEX_URL=url)
        wanted = wanted_of(served / "Foo_Bar-1.1-py3-none-any.whl", "default")
        store = Store.open(tmp_path / "store")
        fetch(store, [wanted], {"wheel": WheelSource(indexes)})
        assert store.has(wanted.digest)
        with pytest.raises(FetchError, match="index default cannot be read") as caught:
            Pages(indexes_for(tmp_path, {}, PIP_INDEX_URL=server.url)).files("default", "foo-bar")
        assert "status 401" in str(caught.value.found)
        with pytest.raises(FetchError) as caught:
            Pages(indexes_for(tmp_path, {}, PIP_INDEX_URL=server.with_credentials("me", "wr0ng"))).files("default", "x")
        assert "wr0ng" not in caught.value.diagnostics()


def test_credentials_of_uvs_variables_and_of_netrc(
        tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with IndexServer(served, auth=("me", "p@ss")) as server:
        entries = {"mirror": {"type": "simple", "url": server.url}}
        named = indexes_for(tmp_path, entries, UV_INDEX_MIRROR_USERNAME="me", UV_INDEX_MIRROR_PASSWORD="p@ss")
        assert len(Pages(named).files("mirror", "foo-bar")) == 2
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password p@ss\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert len(Pages(indexes_for(tmp_path, entries)).files("mirror", "foo-bar")) == 2


def test_a_private_certificate_authority(tmp_path: Path, served: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    wanted = wanted_of(served / "Foo_Bar-1.1-py3-none-any.whl")
    with IndexServer(served, tls=(cert, key)) as server:
        for number, variable in enumerate(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")):
            store = Store.open(tmp_path / f"store{number}")
            fetch(store, [wanted], {"wheel": WheelSource(mirror(tmp_path, server, **{variable: str(ca)}))})
            assert store.has(wanted.digest)
        with pytest.raises(FetchError) as caught:
            WheelSource(mirror(tmp_path, server)).locate(wanted)
        assert "certificate is not trusted" in str(caught.value.found)
        assert "SSL_CERT_FILE" in str(caught.value.cure)
        assert len(Pages(mirror(tmp_path, server, PIP_TRUSTED_HOST="127.0.0.1")).files("mirror", "foo-bar")) == 2


def test_pips_proxy(tmp_path: Path, server: IndexServer) -> None:
    indexes = indexes_for(tmp_path, {"far": {"type": "simple", "url": "http://far.invalid/simple/"}},
                          PIP_PROXY=server.root)
    assert len(Pages(indexes).files("far", "foo-bar")) == 2
    assert server.requests[0].headers["host"] == "far.invalid"


def test_hashes_are_not_needed_on_the_page(tmp_path: Path, served: Path) -> None:
    with IndexServer(served, options=Options(hashes=False, sizes=False)) as server:
        wanted = wanted_of(served / "Foo_Bar-1.1-py3-none-any.whl")
        store = Store.open(tmp_path / "store")
        fetch(store, [wanted], {"wheel": WheelSource(mirror(tmp_path, server))})
        assert hashlib.sha256(store.read(wanted.digest)).hexdigest() == wanted.sha256
