"""The bill of materials of an image: SPDX 2.3 as JSON. Pure: packages in, one JSON value out.

Deterministic: the time is `SOURCE_DATE_EPOCH`, the namespace follows from the manifest's digest and the packages, lists
are sorted. Schema and an example: docs/formats/sbom.md; https://spdx.github.io/spdx-spec/v2.3/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cache import canonical
from oci.image import CREATED
from oci.licences import NONE, spdx_expression

_IMAGE = "SPDXRef-Image"


def sbom(name: str, manifest: str, packages: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The SPDX document.

    Args:
        name: of the target.
        manifest: digest of the image's manifest.
        packages: layer to its entries of `stagecraft.packages.v1`.
    """
    listed = [(layer, package) for layer in sorted(packages) for package in packages[layer]]
    listed.sort(key=lambda pair: (pair[1]["type"], pair[1]["name"], pair[1]["version"], pair[0]))
    names: set[str] = set()
    described: list[dict[str, Any]] = []
    references: dict[str, str] = {}
    for layer, package in listed:
        entry, words = _package(package, layer, names)
        described.append(entry)
        references |= words
    image = {
        "SPDXID": _IMAGE, "name": name, "versionInfo": manifest, "downloadLocation": NONE, "filesAnalyzed": False,
        "licenseConcluded": NONE, "licenseDeclared": NONE, "copyrightText": NONE, "supplier": NONE,
        "primaryPackagePurpose": "CONTAINER",
        "checksums": [_checksum(manifest)],
        "externalRefs": [_purl(f"pkg:oci/{quote(name, safe='')}@{quote(manifest, safe='')}")],
    }
    content = canonical.digest_of("sbom", {"manifest": manifest, "packages": described})
    found: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": name,
        "documentNamespace": f"https://spdx.org/spdxdocs/stagecraft-{name}-{content[7:]}",
        "creationInfo": {"created": CREATED, "creators": ["Tool: stagecraft"]},
        "packages": [image, *described],
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": _IMAGE},
            *({"spdxElementId": _IMAGE, "relationshipType": "CONTAINS", "relatedSpdxElement": entry["SPDXID"]}
              for entry in described),
        ],
    }
    if references:
        found["hasExtractedLicensingInfos"] = [
            {"licenseId": reference, "name": references[reference][:200], "extractedText": references[reference]}
            for reference in sorted(references)]
    return found


def _package(package: Mapping[str, Any], layer: str, names: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
    stem = "SPDXRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", f"{package['type']}-{package['name']}-{package['version']}")
    identity, number = stem, 2
    while identity in names:
        identity, number = f"{stem}-{number}", number + 1
    names.add(identity)
    licence, words = spdx_expression(package.get("licence", ""))
    entry: dict[str, Any] = {
        "SPDXID": identity, "name": package["name"], "versionInfo": package["version"], "downloadLocation": NONE,
        "filesAnalyzed": False, "licenseConcluded": NONE, "licenseDeclared": licence, "copyrightText": NONE,
        "supplier": NONE, "sourceInfo": f"layer {layer}",
    }
    if package.get("file"):
        entry["packageFileName"] = package["file"]
    if package.get("digest"):
        entry["checksums"] = [_checksum(package["digest"])]
    if package.get("purl"):
        entry["externalRefs"] = [_purl(package["purl"])]
    return entry, words


def _checksum(digest: str) -> dict[str, str]:
    return {"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}


def _purl(locator: str) -> dict[str, str]:
    return {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}
