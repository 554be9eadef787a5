"""Logs of stages: short ones plain, long ones packed and bounded, both read from their end."""

from __future__ import annotations

import io

import pytest

from cache.errors import IntegrityError
from cache.log import PLAIN, TAIL, StageLog, end_of, text_of
from cache.store import Store

KEY = "sha256:" + "1" * 64


def published(store: Store, *lines: str, packed: int = 1 << 20) -> bytes:
    with StageLog(store, packed) as log:
        for line in lines:
            log.line(line)
        digest = log.publish().digest
    assert list((store.root / "tmp").iterdir()) == []
    return store.path_of(digest).read_bytes()


def read(data: bytes) -> str:
    return b"".join(text_of(io.BytesIO(data), "log")).decode()


def test_short_log_is_plain_text(store: Store) -> None:
    assert published(store, "one", "größer") == "one\ngrößer\n".encode()
    assert published(store) == b""
    assert read(b"one\n") == "one\n"


def test_long_log_is_packed_and_comes_back(store: Store) -> None:
    lines = [f"line {number} of a compiler that says much" for number in range(50_000)]
    data = published(store, *lines)
    assert len(data) < sum(map(len, lines)) // 5
    assert read(data).splitlines() == lines


def test_text_that_is_no_unicode_is_kept_with_marks(store: Store) -> None:
    assert published(store, "a\udcffb") == b"a?b\n"


def test_log_without_end_keeps_both_its_ends(store: Store) -> None:
    lines = [f"{number} {number * 7919 % 1000003}" for number in range(400_000)]
    data = published(store, *lines, packed=200_000)
    assert len(data) < 1_200_000
    found = read(data).splitlines()
    at = next(number for number, line in enumerate(found) if line.startswith("# "))
    left_out = int(found[at].split()[1])
    assert at + left_out + len(found) - at - 1 == len(lines)
    assert found[:at] == lines[:at]
    assert found[at + 1:] == lines[-(len(found) - at - 1):]
    assert at > PLAIN // 20
    assert sum(len(line) + 1 for line in found[at + 1:]) <= TAIL


@pytest.mark.parametrize("limit", [1, 12, 100, 4096, 1 << 20, 1 << 30])
@pytest.mark.parametrize("count", [1, 20, 300_000])
def test_end_is_whole_lines_and_the_rest_is_counted(store: Store, count: int, limit: int) -> None:
    lines = [f"line {number}" for number in range(count)]
    text, before = end_of(io.BytesIO(published(store, *lines)), "log", limit)
    shown = text.splitlines()
    assert len(text) <= limit
    assert before + len(shown) == count
    assert shown == lines[before:]
    assert not before or len("\n".join(lines[before - 1:])) + 1 > limit


def test_failed_log_takes_the_place_of_the_one_before(store: Store) -> None:
    for count in (20_000, 1):
        with StageLog(store) as log:
            for number in range(count):
                log.line(f"{count}: {number}")
            log.keep(KEY)
        assert read(store.log_path(KEY).read_bytes()).splitlines()[0] == f"{count}: 0"
    assert list((store.root / "tmp").iterdir()) == []


def test_log_of_nobody_leaves_nothing(store: Store) -> None:
    with StageLog(store) as log:
        log.line("x" * PLAIN * 2)
        assert len(list((store.root / "tmp").iterdir())) == 1
    assert list((store.root / "tmp").iterdir()) == []


def test_damaged_log_is_named(store: Store) -> None:
    data = published(store, *map(str, range(100_000)))
    with pytest.raises(IntegrityError, match="zstd data"):
        read(data[:-20])
