"""Builder `attest`: what an image consists of and where it comes from, written beside it.

Inputs: `manifest`; `lock` (its pins: `base`, `debs`, `wheels`, `files`); `packages/<stage>` (`stagecraft.packages.v1`);
with a base image `base/status` and `base/os-release`. Params: `target`, and perhaps `keys` (stage to action key) and
`waivers` (exceptions that the target makes, with their reasons).
Outputs: `sbom` (SPDX 2.3), `provenance` (in-toto, SLSA v1), both canonical JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from cache import canonical
from cache.build import BuildContext
from cache.errors import IntegrityError
from cache.store import Blob
from oci import facts
from oci.contents import parse
from oci.provenance import provenance
from oci.sbom import sbom


def build(context: BuildContext) -> dict[str, Blob]:
    """See the module text.

    Raises:
        IntegrityError: an input is missing or is not what it should be.
    """
    packages: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(context.inputs):
        if name.startswith("packages/"):
            data = parse(context.store.read(context.inputs[name]), name)
            if data.get("format") != "stagecraft.packages.v1":
                raise IntegrityError("not a list of packages", where=name, found=str(data.get("format")))
            packages[name.partition("/")[2]] = data["packages"]
    purls = {package["digest"]: package["purl"] for listed in packages.values() for package in listed
             if package.get("digest") and package.get("purl")}
    if "base/status" in context.inputs:
        release = facts.os_release(context.store.read(context.inputs["base/os-release"]))
        status = context.store.read(context.inputs["base/status"])
        packages["base image"] = list(installed(status, release.get("ID", "debian")))
    target, manifest = str(context.params["target"]), context.inputs["manifest"]
    internal = {"lock": context.inputs["lock"], "keys": context.params.get("keys", {})}
    if "waivers" in context.params:
        internal["waivers"] = context.params["waivers"]
    pins = parse(context.store.read(context.inputs["lock"]), "lock")
    bill, origin = sbom(target, manifest, packages), provenance(target, manifest, pins, purls, internal)
    context.log(f"{len(bill['packages']) - 1} packages")
    return {"sbom": context.store.put(canonical.dumps(bill)), "provenance": context.store.put(canonical.dumps(origin))}


def installed(status: bytes, distribution: str) -> Iterator[dict[str, Any]]:
    """The packages of a dpkg status database, as far as it tells: neither files nor digests nor licences."""
    for stanza in re.split(r"\n\s*\n", status.decode("utf-8", "replace")):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): *(.*)$", stanza, re.M))
        if "Package" in fields and fields.get("Status", "install ok installed").endswith(" installed"):
            name, version = fields["Package"], fields.get("Version", "")
            architecture = fields.get("Architecture", "")
            yield {"type": "deb", "name": name, "version": version, "architecture": architecture,
                   "purl": f"pkg:deb/{distribution}/{quote(name, safe='')}@{quote(version, safe='')}"
                           f"?arch={architecture}"}
