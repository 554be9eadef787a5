import pytest

from cache.errors import InputError
from oci.reference import Reference, is_loopback, parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(("text", "expected"), [
    ("nvcr.io/nvidia/cuda:13.0.2-devel-ubuntu24.04", Reference("nvcr.io", "nvidia/cuda", "13.0.2-devel-ubuntu24.04")),
    (f"nvcr.io/nvidia/cuda@{DIGEST}", Reference("nvcr.io", "nvidia/cuda", "", DIGEST)),
    (f"127.0.0.1:5000/a/b/c:1@{DIGEST}", Reference("127.0.0.1:5000", "a/b/c", "1", DIGEST)),
    ("localhost/x", Reference("localhost", "x")),
    ("[::1]:5000/x:y", Reference("[::1]:5000", "x", "y")),
    ("registry.example/a__b/c-d.e", Reference("registry.example", "a__b/c-d.e")),
])
def test_a_reference_is_read_and_written_back(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize("text", [
    "ubuntu", "ubuntu:24.04", "library/ubuntu", "nvcr.io", "nvcr.io/", "nvcr.io/NVIDIA/cuda", "nvcr.io/a//b", "",
    "nvcr.io/a:", "nvcr.io/a@sha256:abc", "nvcr.io/a:-x", "https://nvcr.io/a", "nvcr.io/a b", "nvcr.io/../a",
    f"nvcr.io/a@sha512:{'ab' * 64}", "nvcr.io/a\n",
])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reference(text)
    assert "REGISTRY/REPOSITORY" in str(caught.value.expected)


def test_a_name_without_registry_is_told_so() -> None:
    with pytest.raises(InputError, match="names no registry"):
        parse_reference("library/ubuntu:24.04")


@pytest.mark.parametrize(("host", "expected"), [
    ("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.8.9.1", True), ("[::1]:5000", True),
    ("[::1]", True), ("a.localhost:80", True), ("localhost.example.org", False), ("127.0.0.1.example.org:5000", False),
    ("10.0.0.1:5000", False), ("nvcr.io", False),
])
def test_only_this_machine_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_wanted_thing_is_the_digest_before_the_tag() -> None:
    assert parse_reference(f"a.example/b:c@{DIGEST}").wanted == DIGEST
    assert parse_reference("a.example/b:c").wanted == "c"
    assert parse_reference("a.example/b").wanted == "latest"


def test_docker_hub_is_served_under_another_name() -> None:
    assert parse_reference("docker.io/library/ubuntu").host == "registry-1.docker.io"
    assert parse_reference("docker.io/library/ubuntu").name == "docker.io/library/ubuntu"
