"""Which extensions AArch64 code needs: instructions have four bytes each, and masks tell those of an extension.

Encodings: Arm Architecture Reference Manual, C4 "A64 instruction set encoding". What no mask knows counts as Armv8.0.
"""

from __future__ import annotations

import struct

#: (mask, value, extension), the first that fits.
_ENCODINGS = (
    (0x1E000000, 0x04000000, "sve"),        # op0 = x0010
    (0x9E000000, 0x80000000, "sme"),
    (0xBFE0FC00, 0x2E40FC00, "bf16"),       # BFDOT
    (0xFFE0FC00, 0x6E40EC00, "bf16"),       # BFMMLA
    (0xBFE0FC00, 0x2EC0FC00, "bf16"),       # BFMLALB, BFMLALT
    (0xBFFFFC00, 0x0EA16800, "bf16"),       # BFCVTN
    (0xFFFFFC00, 0x1E634000, "bf16"),       # BFCVT
    (0xFFE0FC00, 0x4E80A400, "i8mm"),       # SMMLA
    (0xFFE0FC00, 0x6E80A400, "i8mm"),       # UMMLA
    (0xFFE0FC00, 0x4E80AC00, "i8mm"),       # USMMLA
    (0xBFE0FC00, 0x0E809C00, "i8mm"),       # USDOT
    (0x9FE0FC00, 0x0E809400, "dotprod"),    # SDOT, UDOT
    (0x9FC0F400, 0x0F80E000, "dotprod"),    # the same by element
    (0xFFFF7C00, 0x1EE24000, ""),           # FCVT of a half, in Armv8.0 already
    (0x9F60C400, 0x0E400400, "fp16"),       # three vectors of halves
    (0xFFE00C00, 0x1EE00800, "fp16"),       # two scalar halves
    (0xFFE07C00, 0x1EE04000, "fp16"),       # one scalar half
    (0x3FA07C00, 0x08A07C00, "lse"),        # CAS
    (0x3B200C00, 0x38200000, "lse"),        # LDADD … SWP
)


def features(code: bytes) -> frozenset[str] | None:
    """The extensions beyond Armv8.0 in a run of instructions; None if it is no whole number of them."""
    if len(code) % 4:
        return None
    return frozenset(found for word in set(struct.unpack(f"<{len(code) // 4}I", code)) if (found := _extension(word)))


def _extension(word: int) -> str:
    return next((name for mask, value, name in _ENCODINGS if word & mask == value), "")
