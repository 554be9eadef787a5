"""Builders that do not give the same bytes twice: what `rebuild` must find."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.store import Blob

#: Files of the layer of the first, second, … build.
CONTENTS: list[dict[str, tuple[bytes, int]]] = []
_calls: Iterator[int] = itertools.count()


def prepare(*contents: dict[str, tuple[bytes, int]]) -> None:
    """What the next builds of `layer` hold: path to (content, mode)."""
    global _calls
    CONTENTS[:] = contents
    _calls = itertools.count()


def layer(context: BuildContext) -> Mapping[str, Blob]:
    files = CONTENTS[min(next(_calls), len(CONTENTS) - 1)]
    with LayerWriter(context.store) as writer:
        for path, (content, mode) in sorted(files.items()):
            writer.file(path, len(content), [content], mode)
        found = writer.finish()
    return {"layer": found.layer, "index": found.index}


def note(context: BuildContext) -> Mapping[str, Blob]:
    """One text output: the `a` files of the contents."""
    return {"out": context.store.put(CONTENTS[min(next(_calls), len(CONTENTS) - 1)]["a"][0])}
