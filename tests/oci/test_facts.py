import io

import pytest

from cache.errors import LockError
from oci import facts
from oci.merge import Merged
from tests.support.tarballs import LIBC_STATUS, UBUNTU, Member, make_tar, packed


def image_of(*layers: list[Member]) -> Merged:
    image = Merged(facts.kept)
    for members in layers:
        data, _, diff_id = packed(make_tar(members), "none")
        image.add_layer(io.BytesIO(data), diff_id, "layer")
    return image


def test_debians_python_has_dist_packages() -> None:
    assert facts.python_of(image_of(*UBUNTU), {}, "r") == {
        "version": "3.12", "executable": "/usr/bin/python3.12", "site": "usr/local/lib/python3.12/dist-packages",
        "scripts": "usr/local/bin", "data": "usr/local"}


LOCAL: list[Member] = [("usr/local/bin/python3", "python3.11"), ("usr/local/bin/python3.11", b"ELF"),
                       ("usr/local/lib/python3.11/os.py", b"#")]


def test_a_python_below_usr_local_has_site_packages_and_comes_first() -> None:
    found = facts.python_of(image_of(*UBUNTU, LOCAL), {}, "r")
    assert found == {"version": "3.11", "executable": "/usr/local/bin/python3.11",
                     "site": "usr/local/lib/python3.11/site-packages", "scripts": "usr/local/bin", "data": "usr/local"}


def test_the_images_path_decides() -> None:
    found = facts.python_of(image_of(*UBUNTU, LOCAL), {"PATH": "/usr/bin:/usr/local/bin"}, "r")
    assert found["version"] == "3.12"


def test_a_virtual_environment_is_used_by_its_own_name() -> None:
    venv: list[Member] = [("opt/venv/bin/python3", "/usr/bin/python3"), ("opt/venv/pyvenv.cfg", b"home = /usr/bin\n")]
    found = facts.python_of(image_of(*UBUNTU, venv), {"PATH": "/opt/venv/bin:/usr/bin"}, "r")
    assert found == {"version": "3.12", "executable": "/opt/venv/bin/python3",
                     "site": "opt/venv/lib/python3.12/site-packages", "scripts": "opt/venv/bin", "data": "opt/venv"}


def test_a_system_python_elsewhere_than_debians_has_site_packages() -> None:
    members: list[Member] = [("usr/bin/python3", "python3.12"), ("usr/bin/python3.12", b"ELF"),
                             ("usr/lib64/python3.12/os.py", b"#")]
    assert facts.python_of(image_of(members), {}, "r") == {
        "version": "3.12", "executable": "/usr/bin/python3.12", "site": "usr/lib/python3.12/site-packages",
        "scripts": "usr/bin", "data": "usr"}


def test_a_python3_that_is_no_link_is_known_by_its_library() -> None:
    members: list[Member] = [("opt/py/bin/python3", b"ELF"), ("opt/py/lib/python3.9/os.py", b"#"),
                             ("opt/py/lib/python3.10/os.py", b"#")]
    assert facts.python_of(image_of(members), {"PATH": "/opt/py/bin"}, "r")["version"] == "3.10"


def test_a_dangling_python3_is_none() -> None:
    image = image_of([("usr/bin/python3", "python3.12")])
    with pytest.raises(LockError, match="no Python"):
        facts.python_of(image, {}, "r")


def test_without_python_an_added_package_must_bring_it() -> None:
    image = image_of(UBUNTU[0])
    with pytest.raises(LockError) as caught:
        facts.python_of(image, {}, "r.example/x", added=("gcc",), version="3.12")
    assert "python3" in str(caught.value.cure)
    found = facts.python_of(image, {}, "r", added=("gcc", "python3"), version="3.12")
    assert found["site"] == "usr/local/lib/python3.12/dist-packages"


def test_glibc_from_dpkgs_status() -> None:
    assert facts.glibc_of(image_of(*UBUNTU), "r") == "2.39"


def test_glibc_from_the_library_itself() -> None:
    library = b"\x7fELF..GNU C Library (GNU libc) stable release version 2.34.\nCopyright"
    assert facts.glibc_of(image_of([("usr/lib64/libc.so.6", library)]), "r") == "2.34"


def test_an_image_without_glibc_is_refused() -> None:
    with pytest.raises(LockError, match="no glibc"):
        facts.glibc_of(image_of([("lib/ld-musl-aarch64.so.1", b"ELF")]), "r")


def test_the_status_of_a_distroless_image_is_joined() -> None:
    image = image_of([("var/lib/dpkg/status.d/b", b"Package: b\nVersion: 1\n"), ("var/lib/dpkg/status.d/libc6",
                      b"Package: libc6\nArchitecture: arm64\nVersion: 2.36-9\n"),
                      ("var/lib/dpkg/status.d/b.md5sums", b"00  x\n")])
    assert facts.status_of(image) == (
        b"Package: b\nVersion: 1\n\nPackage: libc6\nArchitecture: arm64\nVersion: 2.36-9\n")
    assert facts.glibc_of(image, "r") == "2.36"


def test_status_is_kept_byte_for_byte_and_os_release_through_its_link() -> None:
    image = image_of(*UBUNTU)
    assert facts.status_of(image) == LIBC_STATUS
    assert facts.os_release(facts.os_release_of(image)) == {
        "ID": "ubuntu", "VERSION_CODENAME": "noble", "PRETTY_NAME": "Ubuntu 24.04"}


@pytest.mark.parametrize(("line", "value"), [
    (b"NAME=plain", "plain"), (b'NAME="two words"', "two words"), (b"NAME='single'", "single"),
    (b'NAME="a \\"b\\" \\$c"', 'a "b" $c'), (b"NAME=", ""), (b'NAME="', '"'),
])
def test_os_release_values(line: bytes, value: str) -> None:
    assert facts.os_release(b"# comment\n\n" + line + b"\nnonsense\n") == {"NAME": value}
