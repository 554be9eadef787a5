"""The names under which OpenSSL finds a certificate in a directory: the hash of its subject.

`openssl rehash` makes a link `<8 hex>.<n>` to each certificate, named by X509_NAME_hash: the first
four bytes, little-endian, of the SHA-1 of the subject in canonical form (OpenSSL: crypto/x509/x_name.c,
asn1_string_canon): strings as UTF-8, ASCII lower-cased, spaces trimmed and single.
"""

from __future__ import annotations

import base64
import hashlib
import re

from cache.errors import IntegrityError

_UTF8, _BMP, _UNIVERSAL, _LATIN = 0x0C, 0x1E, 0x1C, 0x14
#: String types that are brought into canonical form: UTF8, Printable, T61, IA5, Visible, Universal, BMP.
_STRINGS = {_UTF8, 0x13, _LATIN, 0x16, 0x1A, _UNIVERSAL, _BMP}
_SPACE = " \t\n\v\f\r"


def subject_hash(pem: bytes, where: str) -> str:
    """The eight hex digits for the first certificate in `pem`.

    Raises:
        IntegrityError: there is none, or it is malformed.
    """
    match = re.search(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----(.*?)-----END ", pem, re.DOTALL)
    try:
        if match is None:
            raise ValueError("no certificate in it")
        subject = _subject(base64.b64decode(match[1], validate=False))
        canonical = b"".join(_canonical_set(content) for tag, content, _ in _items(subject))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise IntegrityError(f"not a certificate: {error}", where=where) from error
    return hashlib.sha1(canonical, usedforsecurity=False).digest()[3::-1].hex()


def _subject(der: bytes) -> bytes:
    certificate = _items(der)[0][1]
    fields = _items(_items(certificate)[0][1])
    if fields[0][0] == 0xA0:  # the version is optional
        fields = fields[1:]
    return fields[4][1]  # serial, algorithm, issuer, validity, subject


def _canonical_set(content: bytes) -> bytes:
    pairs = []
    for _, pair, _ in _items(content):
        (_, _, kind), (tag, value, raw) = _items(pair)[:2]
        pairs.append(_encode(0x30, kind + (_encode(_UTF8, _canonical(tag, value)) if tag in _STRINGS else raw)))
    return _encode(0x31, b"".join(sorted(pairs)))


def _canonical(tag: int, value: bytes) -> bytes:
    coding = {_BMP: "utf-16-be", _UNIVERSAL: "utf-32-be", _UTF8: "utf-8"}.get(tag, "latin-1")
    text = re.sub(f"[{_SPACE}]+", " ", value.decode(coding).strip(_SPACE))
    return "".join(character.lower() if character.isascii() else character for character in text).encode()


def _items(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """The DER values in `data`, one after the other: tag, content, whole."""
    found, at = [], 0
    while at < len(data):
        start, tag, length = at, data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at:at + count], "big")
            at += count
        if at + length > len(data):
            raise ValueError("it ends early")
        found.append((tag, data[at:at + length], data[start:at + length]))
        at += length
    return found


def _encode(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    width = (size.bit_length() + 7) // 8
    return bytes([tag, 0x80 | width]) + size.to_bytes(width, "big") + content
