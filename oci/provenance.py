"""Where an image comes from: an in-toto statement with SLSA provenance v1. Pure: a lock's pins in, one JSON value out.

Deterministic: it says what the image was made of, not when, where or by whom; so it has no `invocationId` and no times.
Not signed: sign the file, or attach it, with a tool made for that. Schema and an example: docs/formats/provenance.md;
https://slsa.dev/spec/v1.0/provenance, https://github.com/in-toto/attestation/tree/main/spec/v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:stagecraft:build:v1"
BUILDER = "urn:stagecraft:builder"


def provenance(target: str, manifest: str, pins: Mapping[str, Any], purls: Mapping[str, str],
               internal: Mapping[str, Any]) -> dict[str, Any]:
    """The statement.

    Args:
        target: what was built.
        manifest: digest of the image's manifest: the subject.
        pins: `base`, `debs`, `wheels`, `files`, `sources` as in a lock; of each of `sources` also `repositories`
            (revision to address) and `files` (patches and scripts: path in the project to digest).
        purls: digest of a file to its package URL, as the layers' packages say.
        internal: `internalParameters`: digests of what the build itself made.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": target, "digest": {"sha256": _hex(manifest)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"target": target},
                "internalParameters": {**internal, **_stubs(pins)},
                "resolvedDependencies": materials(pins, purls),
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }


def materials(pins: Mapping[str, Any], purls: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every locked input as a resource descriptor (`uri`, `name`, `digest`), each once, sorted."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    sources = pins.get("sources", ())
    tools = [("debs", package["tools"]["debs"]) for package in sources]
    tools += [("wheels", package["tools"][part]) for package in sources for part in ("toolkit", "requires")]
    tools += [("debs", package["tools"].get("development", ())) for package in sources]
    for section, entries in [*((section, pins.get(section, ())) for section in ("debs", "wheels", "files")), *tools]:
        for entry in entries:
            file = entry["file"].rpartition("/")[2]
            uri = purls.get(f"sha256:{entry['sha256']}") or purl(section, entry)
            found[uri, entry["sha256"]] = {"uri": uri, "name": file, "digest": {"sha256": entry["sha256"]}}
    for package in sources:
        for descriptor in _sources(package):
            found[descriptor.get("uri", descriptor["name"]), next(iter(descriptor["digest"].values()))] = descriptor
    base, server = pins.get("base", {}), pins.get("server", {})
    images = [(str(base.get("repository", "base")), base["digest"])] if base.get("digest") else []
    if server.get("kind") == "image":
        images.append((server["address"], server["digest"]))
    for name, digest in images:
        uri = f"pkg:oci/{quote(name.rpartition('/')[2], safe='')}@{quote(digest, safe='')}" + (
            f"?repository_url={quote(name, safe='/')}" if "/" in name else "")
        found[uri, digest] = {"uri": uri, "name": name, "digest": {"sha256": _hex(digest)}}
    if server.get("kind") == "archive":
        found[server["address"], server["sha256"]] = {"uri": server["address"], "name": server["file"],
                                                      "digest": {"sha256": server["sha256"]}}
    return [found[key] for key in sorted(found)]


def _stubs(pins: Mapping[str, Any]) -> dict[str, Any]:
    """Sources that an empty tree stood for, by package."""
    found = {package["name"]: package["stubs"] for package in pins.get("sources", ()) if package["stubs"]}
    return {"stubs": found} if found else {}


def _sources(package: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a package was compiled from: its sdist or its Git tree, the trees that it pins, patches and scripts.

    `sha256` of a Git tree is that of its files as a layer (docs/formats/lock.md). A file of the project has no address.
    """
    for path, digest in package["files"].items():
        yield {"name": path, "digest": {"sha256": _hex(digest)}}
    source, repositories = package["source"], package["repositories"]
    if source["kind"] == "sdist":
        yield {"uri": f"pkg:pypi/{quote(package['name'], safe='')}@{quote(package['version'], safe='')}"
                      f"?file_name={quote(source['file'], safe='')}",
               "name": source["file"], "digest": {"sha256": source["sha256"]}}
    for file in package.get("archives", ()):
        yield {"uri": package["addresses"][file["sha256"]], "name": file["file"], "digest": {"sha256": file["sha256"]}}
    trees = [{"name": package["name"], **source}] if source["kind"] == "git" else []
    for tree in [*trees, *package["trees"]]:
        yield {"uri": f"git+{repositories[tree['revision']]}@{tree['revision']}", "name": tree["name"],
               "digest": {"sha256": _hex(tree["tree"]), "gitCommit": tree["revision"]}}


def purl(section: str, entry: Mapping[str, str]) -> str:
    """The package URL of a locked file that no layer describes."""
    version = quote(entry["version"], safe="")
    if section == "debs":
        architecture = entry.get("architecture", "")
        return f"pkg:deb/debian/{quote(entry['name'], safe='')}@{version}" + (
            f"?arch={architecture}" if architecture else "")
    return f"pkg:pypi/{quote(entry['name'], safe='')}@{version}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
