"""SBOM and provenance, judged by the official libraries."""

import json
from pathlib import Path
from typing import Any

import pytest
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from spdx_tools.spdx.model import RelationshipType
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from cache import canonical
from cache.build import BuildContext
from cache.errors import IntegrityError
from cache.store import Store
from oci.attest import build, installed
from oci.provenance import materials
from tests.support.images import ARM64, sample
from tests.support.tarballs import LIBC_STATUS

PACKAGES: dict[str, list[dict[str, Any]]] = {
    "base": [
        {"type": "deb", "name": "libstdc++6", "version": "1:12.2.0-14+deb12u1", "architecture": "arm64",
         "file": "libstdc++6_12.2.0-14_arm64.deb", "digest": "sha256:" + "a" * 64,
         "licence": "GPL-3+ with GCC-Runtime exception and Expat",
         "purl": "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14%2Bdeb12u1?arch=arm64"},
        {"type": "deb", "name": "zlib1g", "version": "1", "architecture": "arm64", "file": "z.deb",
         "digest": "sha256:" + "b" * 64, "licence": "", "purl": "pkg:deb/debian/zlib1g@1?arch=arm64"}],
    "torch": [
        {"type": "pypi", "name": "torch", "version": "2.13.0+cu130", "architecture": "arm64", "file": "torch.whl",
         "digest": "sha256:" + "c" * 64, "licence": "BSD License", "purl": "pkg:pypi/torch@2.13.0%2Bcu130"},
        {"type": "pypi", "name": "torch", "version": "2.13.0-cu130", "architecture": "arm64", "file": "torch2.whl",
         "digest": "sha256:" + "d" * 64, "licence": "BSD License"}],
}
PINS = {"base": {"kind": "debian"}, "python": {},
        "debs": [{"name": "zlib1g", "version": "1", "file": "pool/z/z.deb", "size": 1, "sha256": "b" * 64,
                  "index": "debian", "architecture": "arm64"},
                 {"name": "libstdc++6", "version": "1:12.2.0-14+deb12u1", "file": "pool/libstdc.deb", "size": 1,
                  "sha256": "a" * 64, "index": "debian", "architecture": "arm64"}],
        "wheels": [{"name": "torch", "version": "2.13.0+cu130", "file": "torch.whl", "size": 1, "sha256": "c" * 64,
                    "index": "default"}], "files": []}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def attested(store: Store, packages: dict[str, list[dict[str, Any]]] | None = None,
             more: dict[str, str] | None = None) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    inputs = {f"packages/{stage}": store.put(canonical.dumps(
        {"format": "stagecraft.packages.v1", "packages": listed})).digest
        for stage, listed in (PACKAGES if packages is None else packages).items()}
    inputs |= {"manifest": sample(store)["manifest"].digest, "lock": store.put(canonical.dumps(PINS)).digest}
    made = build(BuildContext(store, {"target": "thor", "description": "x"}, {**inputs, **(more or {})}, ARM64))
    return json.loads(store.read(made["sbom"].digest)), json.loads(store.read(made["provenance"].digest)), {
        name: blob.digest for name, blob in made.items()}


def test_the_bill_is_valid_spdx(store: Store, tmp_path: Path) -> None:
    found, _, _ = attested(store)
    path = tmp_path / "sbom.spdx.json"
    path.write_text(json.dumps(found))
    document = parse_file(str(path))
    assert validate_full_spdx_document(document) == []
    assert {(p.name, p.version) for p in document.packages[1:]} == {
        (p["name"], p["version"]) for listed in PACKAGES.values() for p in listed}
    contained = [r for r in document.relationships if r.relationship_type == RelationshipType.CONTAINS]
    assert len(contained) == 4
    torch = next(p for p in document.packages if p.version == "2.13.0+cu130")
    assert torch.checksums[0].value == "c" * 64
    assert torch.external_references[0].locator == "pkg:pypi/torch@2.13.0%2Bcu130"
    references = {info.license_id: info.extracted_text for info in document.extracted_licensing_info}
    assert references[str(torch.license_declared)] == "BSD License"


def test_the_validator_sees_what_is_wrong(store: Store, tmp_path: Path) -> None:
    found, _, _ = attested(store)
    del found["hasExtractedLicensingInfos"]
    path = tmp_path / "sbom.spdx.json"
    path.write_text(json.dumps(found))
    assert validate_full_spdx_document(parse_file(str(path)))


def test_the_statement_is_valid_in_toto_with_slsa(store: Store) -> None:
    _, found, _ = attested(store)
    manifest = sample(store)["manifest"].digest
    statement = Statement.copy_from_pb(_statement(found))
    statement.validate()
    assert statement.pb.subject[0].digest["sha256"] == manifest[7:]
    predicate = provenance_pb2.Provenance()
    from google.protobuf import json_format

    json_format.ParseDict(found["predicate"], predicate)
    definition = predicate.build_definition
    assert definition.external_parameters["target"] == "thor"
    assert {d.digest["sha256"] for d in definition.resolved_dependencies} == {"a" * 64, "b" * 64, "c" * 64}
    for descriptor in definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(descriptor).validate()
    assert predicate.run_details.builder.id


def _statement(data: dict[str, Any]) -> Any:
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2

    return json_format.ParseDict(data, statement_pb2.Statement())


def test_golden_digests_and_nothing_of_the_clock(store: Store, tmp_path: Path) -> None:
    _, _, first = attested(store)
    _, _, second = attested(Store.open(tmp_path / "other"))
    assert first == second == {
        "sbom": "sha256:0cf6c6d107bd9f00ddcafa11160b91779c31330e1f9a0dab5f87b01cd5caed4b",
        "provenance": "sha256:eca0fbe7411e0db5947b0f879987c5f47818a1e27bd8e43ea0f63878a93950e3"}


def test_materials_have_purls_and_come_once() -> None:
    base = {"kind": "image", "digest": "sha256:" + "e" * 64, "repository": "nvcr.io/nvidia/cuda"}
    found = materials({**PINS, "base": base, "files": PINS["wheels"]}, {"sha256:" + "b" * 64: "pkg:deb/known@1"})
    assert [entry["uri"] for entry in found] == [
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14%2Bdeb12u1?arch=arm64", "pkg:deb/known@1",
        "pkg:oci/cuda@sha256%3A" + "e" * 64 + "?repository_url=nvcr.io/nvidia/cuda", "pkg:pypi/torch@2.13.0%2Bcu130"]


SOURCES = [{"name": "pkg", "version": "1.0",
            "source": {"kind": "sdist", "file": "pkg-1.0.tar.gz", "size": 1, "sha256": "1" * 64},
            "trees": [{"name": "deep", "revision": "2" * 40, "tree": "sha256:" + "3" * 64}], "stubs": ["hopper"],
            "tools": {"debs": [], "toolkit": [], "requires": []},
            "repositories": {"2" * 40: "https://example.org/deep"},
            "files": {"recipe/build.sh": "sha256:" + "4" * 64, "recipe/one.patch": "sha256:" + "5" * 64}}]


def test_what_is_compiled_says_of_what_and_what_was_left_out(store: Store) -> None:
    from google.protobuf import json_format

    pins = canonical.dumps({**PINS, "sources": SOURCES})
    _, found, _ = attested(store, more={"lock": store.put(pins).digest})
    definition = found["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["stubs"] == {"pkg": ["hopper"]}
    there = {entry["name"]: entry for entry in definition["resolvedDependencies"]}
    assert there["deep"]["uri"] == f"git+https://example.org/deep@{'2' * 40}"
    assert there["deep"]["digest"] == {"sha256": "3" * 64, "gitCommit": "2" * 40}
    assert there["recipe/one.patch"]["digest"] == {"sha256": "5" * 64}
    predicate = json_format.ParseDict(found["predicate"], provenance_pb2.Provenance())
    for descriptor in predicate.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(descriptor).validate()


def test_packages_of_a_base_image_are_in_the_bill(store: Store) -> None:
    more = {"base/status": store.put(LIBC_STATUS).digest, "base/os-release": store.put(b"ID=ubuntu\n").digest}
    found, _, _ = attested(store, {}, more)
    assert [(p["name"], p["externalRefs"][0]["referenceLocator"]) for p in found["packages"][1:]] == [
        ("bash", "pkg:deb/ubuntu/bash@5.2.21-2ubuntu4?arch=arm64"),
        ("libc6", "pkg:deb/ubuntu/libc6@2.39-0ubuntu8.6?arch=arm64")]


def test_removed_packages_are_not_installed() -> None:
    assert [package["name"] for package in installed(LIBC_STATUS, "ubuntu")] == ["libc6", "bash"]


def test_what_is_no_list_of_packages_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError, match="not a list of packages"):
        attested(store, {}, {"packages/odd": store.put(b'{"format":"other"}').digest})
