"""Alternatives: what `update-alternatives` would have made of the calls in packages' scripts.

Scripts are read, never run: of `postinst` the calls `update-alternatives --install` whose arguments
are all literal. That is how debhelper writes them and how the packages of a base do. Administrative
files are written as update-alternatives(1) keeps them, so that it works in the image.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from assemble.tree import Tree
from cache.errors import InputError


@dataclass(frozen=True)
class Choice:
    """One `--install`: `links` are the slaves, name to (link, path)."""

    name: str
    link: str
    path: str
    priority: int
    slaves: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def choices(script: str) -> list[Choice]:
    """The literal `--install` calls in a maintainer script."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        match = re.match(r"\s*update-alternatives\s+(--(?:quiet\s+--)?install\s.*?)(\|\||&&|;|$)", line)
        if not match or re.search(r"[$`;&|<>(){}*?]", match[1]):
            continue
        words = shlex.split(match[1], comments=True)
        at = words.index("--install")
        try:
            link, name, path, priority = words[at + 1:at + 5]
            slaves = {words[i + 2]: (words[i + 1], words[i + 3])
                      for i, word in enumerate(words) if word == "--slave"}
            found.append(Choice(name, link, path, int(priority), slaves))
        except (ValueError, IndexError):
            continue
    return found


def install(tree: Tree, known: Iterable[Choice], wanted: Mapping[str, str]) -> None:
    """Make the links and administrative files in the tree.

    Args:
        wanted: name to path: what the target says. The best priority is taken for all others.

    Raises:
        InputError: a wanted path is not in the tree.
    """
    groups: dict[str, list[Choice]] = {}
    for choice in known:
        if tree.find(choice.path) is not None:
            groups.setdefault(choice.name, []).append(choice)
    for name, path in wanted.items():
        if tree.find(path) is None:
            raise InputError("an alternative leads to a path that no package has", where=f"alternatives: {name}",
                             found=path, cure="correct it, or add the package that brings it")
        if all(choice.path != path for choice in groups.get(name, ())):
            link = groups[name][0].link if name in groups else f"/usr/bin/{name}"
            groups.setdefault(name, []).append(Choice(name, link, path, 0))
    for name, group in sorted(groups.items()):
        # update-alternatives keeps choices sorted by path and prefers the first of the best.
        group = sorted({choice.path: choice for choice in group}.values(), key=lambda choice: choice.path)
        best = max(group, key=lambda choice: choice.priority)
        chosen = next((choice for choice in group if choice.path == wanted.get(name)), best)
        _link(tree, chosen.name, chosen.link, chosen.path)
        for slave, (link, path) in chosen.slaves.items():
            if tree.find(path) is not None:
                _link(tree, slave, link, path)
        tree.put(f"var/lib/dpkg/alternatives/{name}", admin_file(group, auto=chosen is best))


def admin_file(group: list[Choice], *, auto: bool) -> bytes:
    """The file in `var/lib/dpkg/alternatives`; all of `group` have one name."""
    slaves = sorted({name: link for choice in group for name, (link, _) in choice.slaves.items()}.items())
    lines = ["auto" if auto else "manual", group[0].link]
    for name, link in slaves:
        lines += [name, link]
    lines.append("")
    for choice in group:
        lines += [choice.path, str(choice.priority)]
        lines += [choice.slaves[name][1] if name in choice.slaves else "" for name, _ in slaves]
    return "\n".join([*lines, "", ""]).encode()


def _link(tree: Tree, name: str, link: str, path: str) -> None:
    place = tree.place(link.lstrip("/"))
    old = tree.nodes.get(place)
    if old is not None and old.kind != "symlink":
        return  # a package has a real file there; update-alternatives leaves it too
    tree.link(place, f"/etc/alternatives/{name}")
    tree.link(f"etc/alternatives/{name}", path)
