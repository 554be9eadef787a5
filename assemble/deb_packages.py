"""What a layer of Debian packages says of each: the entries of its `packages` output."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from assemble.dpkg import Package, parse_stanzas, status_stanza
from assemble.tree import Tree
from cache.errors import IntegrityError

_COPYRIGHT_LIMIT = 4 << 20


def described(package: Package, digest: str, tree: Tree, distribution: str) -> dict[str, Any]:
    """One entry of `stagecraft.packages.v1`, see ARCHITECTURE.md; `distribution` is the name space of its purl."""
    fields = package.fields
    source, _, version = fields.get("Source", package.name).partition(" ")
    return {
        "type": "deb",
        "name": package.name,
        "version": fields["Version"],
        "architecture": fields["Architecture"],
        "file": package.file,
        "digest": digest,
        "licence": licence(package, tree),
        "purl": f"pkg:deb/{distribution}/{quote(package.name, safe='')}@{quote(fields['Version'], safe='')}"
                f"?arch={fields['Architecture']}",
        "source": f"{source} ({version.strip(' ()') or fields['Version']})",
        "status": status_stanza(package),
    }


def licence(package: Package, tree: Tree) -> str:
    """Short names in the package's machine-readable copyright file, ` and ` between them; `""` if it is not one."""
    path = tree.find(f"usr/share/doc/{package.name}/copyright")
    node = tree.nodes.get(path) if path else None
    if path is None or node is None or node.kind not in ("file", "hardlink") or node.size > _COPYRIGHT_LIMIT:
        return ""
    text = tree.read(path).decode("utf-8", "replace")
    if not re.match(r"(?i)\s*Format(-Specification)?:\s*\S*(copyright-format|dep-?5)", text):
        return ""
    return " and ".join(sorted(short_names(text)))


def short_names(text: str) -> set[str]:
    """The licences that the `Files` paragraphs of a machine-readable copyright file name.

    `or`, `and` and exceptions stay as they are written; a paragraph with such an expression is put in brackets.
    """
    try:
        stanzas = parse_stanzas(re.sub(r"(?m)^#.*\n?", "", text), "copyright")
    except IntegrityError:
        return set()
    found = set()
    for stanza in stanzas:
        if "Files" in stanza or stanza is stanzas[0]:
            name = stanza.get("License", "").partition("\n")[0].strip()
            if name:
                found.add(f"({name})" if re.search(r"\b(or|and)\b|,", name) else name)
    return found
