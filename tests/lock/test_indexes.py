"""The list of indexes and the client's configuration behind `default`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cache.errors import InputError
from lock.client import Client, built_in_index, read_client
from lock.indexes import Indexes, load_indexes
from tests.support.index_server import IndexServer, client_environment, write_indexes

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
format: stagecraft.indexes.v1
indexes:
  default:
    type: client
  jetson:
    type: simple
    url: https://mirror.example/+simple/
  debian:
    type: apt
    distribution: debian
"""


def read(tmp_path: Path, text: str, **env: str) -> Indexes:
    path = tmp_path / "indexes.yaml"
    path.write_text(text)
    return load_indexes(path, client_environment(tmp_path, **env))


def test_the_list_of_this_repository() -> None:
    indexes = load_indexes(ROOT / "targets" / "indexes.yaml", {})
    assert indexes.names() == ["default", "jetson", "jetson-jp6", "debian", "ubuntu"]
    assert indexes.wheels("jetson").pages == ("https://pypi.jetson-ai-lab.io/sbsa/cu130/+simple/",)
    assert indexes.wheels("jetson-jp6").pages == ("https://pypi.jetson-ai-lab.io/jp6/cu126/+simple/",)
    assert indexes.apt("debian").distribution == "debian"


def test_no_registry_is_named_in_it() -> None:
    lines = (ROOT / "targets" / "indexes.yaml").read_text().splitlines()
    assert [line.strip() for line in lines if "://" in line] == [
        "url: https://pypi.jetson-ai-lab.io/sbsa/cu130/+simple/", "url: https://pypi.jetson-ai-lab.io/jp6/cu126/+simple/"]


MISTAKES = [
    ("    url:", "    ulr:", "unknown key 'ulr'", 7, "'url'"),
    ("indexes:", "indices:", "unknown key 'indices'", 2, "'indexes'"),
    ("type: simple", "type: simpel", "no known type", 6, "'simple'"),
    ("    url: https://mirror.example/+simple/\n", "", "has no url", 5, ""),
    ("    distribution: debian\n", "", "has no distribution", 8, ""),
    ("https://mirror.example/+simple/", "mirror.example", "not an address", 7, ""),
    ("https://mirror.example/", "https://me:pw@mirror.example/", "credentials", 7, "netrc"),
    ("  jetson:", "  Jet_son:", "not a name", 5, ""),
    ("  jetson:", "  default:", "here twice", 5, ""),
    ("  default:", "  other:", "no index is called default", 0, ""),
    ("indexes.v1", "indexes.v2", "another format", 1, ""),
    ("    type: client", "    type: [client]", "no known type", 4, ""),
    ("    type: client", "    type: client\n    url: https://a.example/", "unknown key 'url'", 5, ""),
    ("  jetson:\n    type: simple", "  jetson: {type: simple", "not YAML", 6, ""),
    (GOOD, "", "another format", 1, ""),
    (GOOD, "- a\n", "no mapping", 1, ""),
]


@pytest.mark.parametrize(("old", "new", "message", "line", "hint"), MISTAKES)
def test_mistakes_are_named_with_file_and_line(
        tmp_path: Path, old: str, new: str, message: str, line: int, hint: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    where = str(caught.value.where)
    assert "indexes.yaml" in where
    assert not line or where.endswith(f":{line}"), where
    assert hint in str(caught.value.cure)
    assert "pw" not in caught.value.diagnostics()


def test_the_schema_says_the_same() -> None:
    """The one in docs takes what we take and refuses what we refuse (but for what is not even YAML)."""
    schema = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/formats/indexes.schema.json").read_text()))
    schema.validate(yaml.safe_load((ROOT / "targets" / "indexes.yaml").read_text()))
    schema.validate(yaml.safe_load(GOOD))
    for old, new, message, _, _ in MISTAKES:
        if message not in ("not YAML", "here twice"):
            assert not schema.is_valid(yaml.safe_load(GOOD.replace(old, new, 1))), message


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no index is called 'jetsn'") as caught:
        read(tmp_path, GOOD).wheels("jetsn")
    assert caught.value.cure == "did you mean 'jetson'?"


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="index debian has no wheels"):
        read(tmp_path, GOOD).wheels("debian")
    with pytest.raises(InputError, match="index jetson has no Debian packages"):
        read(tmp_path, GOOD).apt("jetson")


def test_the_environment_replaces_an_address(tmp_path: Path) -> None:
    indexes = read(tmp_path, GOOD, STAGECRAFT_INDEX_JETSON="http://a.example/x/",
                   STAGECRAFT_INDEX_DEFAULT="http://b.example/simple", STAGECRAFT_INDEX_DEBIAN="http://c.example/debian",
                   PIP_INDEX_URL="http://not.this/")
    assert indexes.wheels("jetson").pages == ("http://a.example/x/",)
    assert indexes.wheels("default").pages == ("http://b.example/simple",)
    assert indexes.apt("debian").url == "http://c.example/debian"


def test_a_page_of_links_is_an_index(tmp_path: Path) -> None:
    index = read(tmp_path, GOOD + "  nightly:\n    type: links\n    url: https://n.example/cu130/\n").wheels("nightly")
    assert (index.pages, index.links) == ((), ("https://n.example/cu130/",))


# -- pip ------------------------------------------------------------------------------------------


def pip_conf(tmp_path: Path, text: str, **env: str) -> Client:
    path = tmp_path / "pip.conf"
    path.write_text(text)
    return read_client({**client_environment(tmp_path), "PIP_CONFIG_FILE": str(path), **env})


def test_pip_configuration(tmp_path: Path) -> None:
    client = pip_conf(tmp_path, "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n"
                                "    https://b.example/simple\n    https://c.example/simple\n"
                                "find-links = /wheels\ncert = /ca.pem\nproxy = http://p:3128\n"
                                "client-cert = /me.pem\ntimeout = 7\ntrusted-host = b.example\n")
    assert client.pages() == ("https://b.example/simple", "https://c.example/simple", "https://a.example/simple")
    assert (client.find_links, client.ca, client.client_cert, client.timeout) == (("/wheels",), "/ca.pem", "/me.pem", 7)
    assert client.proxies() == {"http": "http://p:3128", "https": "http://p:3128"}
    assert client.verify("https://a.example/x") == "/ca.pem"
    assert client.verify("https://b.example/x") is False
    assert client.strategy == "unsafe-best-match"  # pip compares all its indexes


def test_pip_precedence(tmp_path: Path) -> None:
    text = "[global]\nindex-url = https://global/\n[install]\nindex_url = https://install/\n[download]\nindex-url = https://no/\n"
    assert pip_conf(tmp_path, text).index_url == "https://install/"
    assert pip_conf(tmp_path, text, PIP_INDEX_URL="https://env/").index_url == "https://env/"


def test_pip_users_file_and_the_one_that_stands_in_for_it(tmp_path: Path) -> None:
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    (tmp_path / ".config" / "pip" / "pip.conf").write_text("[global]\nfind-links = /of/the/user\n")
    env = client_environment(tmp_path)
    assert read_client(env).find_links == ()  # PIP_CONFIG_FILE=/dev/null: none at all
    assert read_client({**env, "PIP_CONFIG_FILE": ""}).find_links == ("/of/the/user",)
    assert pip_conf(tmp_path, "[global]\n").find_links == ()


def test_a_broken_pip_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip's configuration") as caught:
        pip_conf(tmp_path, "index-url = https://a/\n")
    assert str(tmp_path / "pip.conf") in str(caught.value.where)


def test_no_index(tmp_path: Path) -> None:
    assert pip_conf(tmp_path, "[global]\nno-index = true\nindex-url = https://a/\n").pages() == ()


# -- uv -------------------------------------------------------------------------------------------


def uv_toml(tmp_path: Path, text: str, **env: str) -> Client:
    path = tmp_path / "uv.toml"
    path.write_text(text)
    return read_client({**client_environment(tmp_path), "UV_NO_CONFIG": "", "UV_CONFIG_FILE": str(path), **env})


def test_uv_configuration(tmp_path: Path) -> None:
    client = uv_toml(tmp_path, """
        index-strategy = "unsafe-first-match"
        allow-insecure-host = ["x.example:1"]
        [[index]]
        name = "corp"
        url = "https://corp.example/simple"
        [[index]]
        name = "torch"
        url = "https://only.example/torch"
        explicit = true
        [[index]]
        url = "https://main.example/simple"
        default = true
        [[index]]
        url = "https://flat.example/"
        format = "flat"
        [pip]
        find-links = ["/more"]
    """, UV_INDEX_CORP_USERNAME="me", UV_INDEX_CORP_PASSWORD="p@ss")
    assert client.pages() == ("https://me:p%40ss@corp.example/simple", "https://main.example/simple")
    assert client.find_links == ("/more",)
    assert client.strategy == "unsafe-first-match"
    assert client.verify("https://x.example:1/") is False


def test_uv_counts_before_pip_and_its_environment_before_its_file(tmp_path: Path) -> None:
    client = uv_toml(tmp_path, 'index-url = "https://uv/"\n', PIP_INDEX_URL="https://pip/", PIP_FIND_LINKS="/pip/links",
                     UV_INDEX="corp=https://one/ https://two/", UV_INDEX_CORP_USERNAME="me",
                     UV_INDEX_CORP_PASSWORD="pw")
    assert client.pages() == ("https://me:pw@one/", "https://two/", "https://uv/")
    assert client.find_links == ("/pip/links",)  # uv says nothing of these
    assert client.strategy == "first-index"
    assert uv_toml(tmp_path, 'index-url = "https://uv/"\n', UV_DEFAULT_INDEX="https://env/").index_url == "https://env/"


def test_a_broken_uv_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uv's configuration"):
        uv_toml(tmp_path, "index-url = \n")


def test_certificates_of_the_environment(tmp_path: Path) -> None:
    env = client_environment(tmp_path)
    assert read_client(env).ca == ""
    assert read_client({**env, "REQUESTS_CA_BUNDLE": "/r.pem"}).ca == "/r.pem"
    assert read_client({**env, "REQUESTS_CA_BUNDLE": "/r.pem", "SSL_CERT_FILE": "/s.pem"}).ca == "/s.pem"
    assert pip_conf(tmp_path, "[global]\ncert = /p.pem\n", SSL_CERT_FILE="/s.pem").ca == "/s.pem"


def test_with_nothing_configured_the_client_tells_its_default(tmp_path: Path) -> None:
    assert read_client(client_environment(tmp_path)).pages() == (built_in_index(),)
    assert built_in_index().startswith("https://")


# -- addresses ------------------------------------------------------------------------------------


def test_credentials_go_to_their_own_host_only(tmp_path: Path) -> None:
    indexes = read(tmp_path, GOOD, STAGECRAFT_INDEX_JETSON="https://me:p%20w@mirror.example/simple/")
    index = indexes.wheels("jetson")
    own = indexes.location("https://mirror.example/files/a.whl", index)
    assert (own.auth, own.urls) == (("me", "p w"), ("https://mirror.example/files/a.whl",))
    assert indexes.location("https://cdn.example/a.whl", index).auth is None
    assert indexes.location("http://mirror.example/a.whl", index).auth is None  # not over an open connection
    assert indexes.location("https://mirror.example:8443/a.whl", index).auth is None


def test_files_of_this_machine(tmp_path: Path) -> None:
    indexes = read(tmp_path, GOOD)
    assert indexes.location("file:///a%20b/c.whl", indexes.wheels("jetson")).path == Path("/a b/c.whl")


def test_probe(tmp_path: Path) -> None:
    with IndexServer(tmp_path) as server:
        path = write_indexes(tmp_path / "indexes.yaml", {"up": {"type": "simple", "url": server.url}})
        indexes = load_indexes(path, client_environment(tmp_path))
        assert indexes.probe("up") == ""
        server.fault("/simple/", "error", value=503)
        assert indexes.probe("up") == "status 503"
    assert indexes.probe("up") == "connection refused"
