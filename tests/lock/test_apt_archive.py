"""Where an archive is when nothing says so."""

from pathlib import Path

import pytest

from cache.errors import InputError
from lock.apt_archive import Archive, Source, address, bootstrap_default, pick, probe
from tests.support.index_server import IndexServer

DEBIAN = Archive("debian", "debian")


def host(root: Path, identity: str, **files: str) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text(f'NAME=x\nID={identity}\nID_LIKE="debian"\n')
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_configured_address_wins(tmp_path: Path) -> None:
    archive = Archive("debian", "debian", url="http://mirror/debian", security="http://mirror/sec/")
    assert address(archive, "bookworm", "arm64", root=tmp_path) == "http://mirror/debian/"
    assert address(archive, "bookworm", "arm64", security=True, root=tmp_path) == "http://mirror/sec/"


def test_host_of_the_distribution_lends_its_sources(tmp_path: Path) -> None:
    sources = [Source("http://vendor/linux/debian/", "bookworm", "Vendor"),
               Source("http://m/debian/", "bookworm", "Debian"),
               Source("http://m/sec/", "bookworm-security", "Debian")]
    root = host(tmp_path, "debian")
    assert address(DEBIAN, "trixie", "arm64", root=root, sources=sources) == "http://m/debian/"
    assert address(DEBIAN, "trixie", "arm64", security=True, root=root, sources=sources) == "http://m/sec/"


def test_without_lists_the_archive_with_the_most_suites_counts() -> None:
    sources = [Source("http://vendor/debian/", "bookworm"), Source("http://m/debian/", "bookworm"),
               Source("http://m/debian/", "bookworm-updates"), Source("http://n/node/", "nodistro")]
    assert pick("debian", sources, security=False) == "http://m/debian/"
    assert pick("ubuntu", sources, security=False) is None


def test_another_distribution_uses_the_bootstrap_tools(tmp_path: Path) -> None:
    root = host(tmp_path, "fedora", usr__bin__mmdebstrap="my $m = 'http://d.example/debian';\n"
                                                        "my $s = 'http://security.example/debian-security';\n"
                                                        "my $u = 'http://u.example/ubuntu'; 'http://p.example/ubuntu-ports'")
    lent = [Source("http://never/debian/", "bookworm", "Debian")]
    assert address(DEBIAN, "bookworm", "arm64", root=root, sources=lent) == "http://d.example/debian/"
    assert address(DEBIAN, "bookworm", "arm64", security=True, root=root) == "http://security.example/debian-security/"
    ubuntu = Archive("ubuntu", "ubuntu")
    assert address(ubuntu, "noble", "arm64", root=root) == "http://p.example/ubuntu-ports/"
    assert address(ubuntu, "noble", "amd64", root=root) == "http://u.example/ubuntu/"


def test_the_suites_own_script_comes_first(tmp_path: Path) -> None:
    root = host(tmp_path, "x", usr__share__debootstrap__scripts__woody="default_mirror http://old.example/debian\n",
                usr__sbin__debootstrap='DEF_MIRROR="http://d.example/debian"\n')
    found = {suite: bootstrap_default("debian", suite, "arm64", security=False, root=root)
             for suite in ("woody", "sid")}
    assert found == {"woody": "http://old.example/debian/", "sid": "http://d.example/debian/"}


def test_nothing_known_says_what_to_configure(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        address(DEBIAN, "bookworm", "arm64", root=host(tmp_path, "fedora"))
    assert "STAGECRAFT_INDEX_DEBIAN" in caught.value.diagnostics()
    assert "`url`" in caught.value.diagnostics()


def test_snapshot_address() -> None:
    archive = Archive("debian", "debian", snapshot="http://s/{index}/{date}")
    assert archive.dated("debian-security", "20250520T000000Z") == "http://s/debian-security/20250520T000000Z/"
    assert DEBIAN.dated("debian", "20250520T000000Z") is None
    with pytest.raises(InputError, match="no place for a date"):
        Archive("debian", "debian", snapshot="http://s/").dated("debian", "20250520T000000Z")


def test_an_archive_is_asked_whether_it_answers(tmp_path: Path) -> None:
    assert "refused" in probe(Archive("debian", "debian", url="http://127.0.0.1:1/"))
    with IndexServer(tmp_path) as server:
        assert probe(Archive("debian", "debian", url=server.root)) == ""
        server.fault("dists/", "error", value=503)
        assert "503" in probe(Archive("debian", "debian", url=server.root))
