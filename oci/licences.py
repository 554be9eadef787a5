"""Licences as packages name them, to SPDX licence expressions. Pure.

What is an SPDX expression stays one; names that mean exactly one SPDX licence are translated; anything else becomes a
`LicenseRef-` with the original words kept beside it. Nothing is guessed: "BSD License" or "Apache Software License"
name several licences, so they stay words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

#: Lower-case names with one meaning. Debian's are from the machine-readable copyright format 1.0.
_NAMES: Mapping[str, str] = {
    "mit license": "MIT", "the mit license": "MIT", "mit": "MIT", "expat": "MIT", "mit/expat": "MIT",
    "apache 2.0": "Apache-2.0", "apache 2": "Apache-2.0", "apache2": "Apache-2.0", "apache-2": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0", "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause", "bsd 3-clause license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause", "modified bsd": "BSD-3-Clause", "bsd 2-clause": "BSD-2-Clause",
    "2-clause bsd license": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause", "bsd-3-clauses": "BSD-3-Clause",
    "isc license": "ISC", "isc license (iscl)": "ISC", "the unlicense (unlicense)": "Unlicense",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "mpl 2.0": "MPL-2.0", "psf": "PSF-2.0",
    "python software foundation license": "PSF-2.0", "zlib/libpng": "Zlib", "cc0": "CC0-1.0", "wtfpl": "WTFPL",
    "artistic": "Artistic-1.0", "artistic-2": "Artistic-2.0", "bsl-1": "BSL-1.0", "openssl": "OpenSSL",
}
_GNU = re.compile(r"(A|L)?GPL-?v?(\d)(\.\d+)?(\+|-only|-or-later)?", re.I)
_FDL = re.compile(r"GFDL(-NIV)?-(1\.\d)(\+)?", re.I)
_TOKENS = re.compile(r"\s*(\(|\)|,\s*(?:and|or)\b|\b(?:and|or)\b)\s*", re.I)
#: Longer texts and deeper brackets are no names; packaging hands expressions to Python's own parser.
_LONGEST, _DEEPEST = 4000, 20

NONE = "NOASSERTION"


def spdx_expression(text: str) -> tuple[str, dict[str, str]]:
    """The SPDX expression of a licence's name, and the words behind each `LicenseRef-` in it.

    An empty text is `NOASSERTION`: the package does not say.
    """
    text = " ".join(text.split())
    if not text:
        return NONE, {}
    found = _atom(text)
    if found:
        return found, _references(found, text)
    expression, words = _compound(text)
    if expression:
        return expression, words
    name, words = _own(text)
    return name, words


def _atom(text: str) -> str:
    """One licence or a whole valid expression; "" if it is neither."""
    known = _NAMES.get(text.lower().rstrip("."))
    if known:
        return known
    gnu = _GNU.fullmatch(text)
    if gnu:
        later = "-or-later" if gnu[4] in ("+", "-or-later") else "-only"
        return _valid(f"{(gnu[1] or '').upper()}GPL-{gnu[2]}{gnu[3] or '.0'}{later}")
    fdl = _FDL.fullmatch(text)
    if fdl:
        return _valid(f"GFDL-{fdl[2]}{'-no-invariants' if fdl[1] else ''}-{'or-later' if fdl[3] else 'only'}")
    return _valid(text)


def _valid(text: str) -> str:
    if len(text) > _LONGEST or text.count("(") > _DEEPEST * 4:
        return ""
    try:
        return str(canonicalize_license_expression(text))
    except (InvalidLicenseExpression, ValueError):
        return ""


def _references(expression: str, text: str) -> dict[str, str]:
    return dict.fromkeys(re.findall(r"LicenseRef-[A-Za-z0-9.-]+", expression), text)


def _own(text: str) -> tuple[str, dict[str, str]]:
    """A reference of our own: its name follows from the words."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:40].strip("-.")
    name = f"LicenseRef-{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".replace("--", "-")
    return name, {name: text}


class _NotAnExpressionError(Exception):
    """The text is prose."""


def _compound(text: str) -> tuple[str, dict[str, str]]:
    """Names joined by `and`, `or`, brackets and commas (Debian's form); "" if it is not that.

    A comma before a joining word makes it bind weaker: `A or B, and C` is `(A or B) and C`.
    """
    tokens = [word for word in _TOKENS.split(text) if word.strip()]
    if len(tokens) < 2 or len(text) > _LONGEST:
        return "", {}
    words: dict[str, str] = {}
    try:
        whole = _weak(tokens[::-1], words, 0)
    except _NotAnExpressionError:
        return "", {}
    found = _valid(whole)
    return (found, words) if found else ("", {})


def _weak(left: list[str], words: dict[str, str], depth: int) -> str:
    """What is joined by `, and` or `, or`; takes its words off the end of `left`."""
    whole = _strong(left, words, depth)
    while left and left[-1].startswith(","):
        joint = left.pop().strip(", ").upper()
        whole = f"{_bracketed(whole)} {joint} {_bracketed(_strong(left, words, depth))}"
    if left and (depth == 0 or left[-1] != ")"):
        raise _NotAnExpressionError
    return whole


def _strong(left: list[str], words: dict[str, str], depth: int) -> str:
    """What is joined by `and` and `or`; SPDX gives them the precedence that Debian does."""
    whole = _term(left, words, depth)
    while left and left[-1].lower() in ("and", "or"):
        whole = f"{whole} {left.pop().upper()} {_term(left, words, depth)}"
    return whole


def _term(left: list[str], words: dict[str, str], depth: int) -> str:
    if not left or depth > _DEEPEST:
        raise _NotAnExpressionError
    word = left.pop().strip()
    if word == "(":
        inner = _weak(left, words, depth + 1)
        if not left or left.pop() != ")":
            raise _NotAnExpressionError
        return _bracketed(inner)
    if word == ")" or word.lower().strip(", ") in ("and", "or"):
        raise _NotAnExpressionError
    found = _atom(word)
    if found:
        words.update(_references(found, word))
        return found
    # What looks like a name gets a reference; prose with an `and` in it is no expression.
    if "," in word or ";" in word or len(word) > 60 or len(word.split()) > 4:
        raise _NotAnExpressionError
    name, own = _own(word)
    words.update(own)
    return name


def _bracketed(expression: str) -> str:
    return f"({expression})" if re.search(r" (AND|OR) ", expression) else expression
