from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import canonical
from cache.errors import IntegrityError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**70), 2**70), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    """The same value with all keys entered in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_round_trip(value: Any) -> None:
    assert canonical.loads(canonical.dumps(value)) == value


@given(VALUES)
def test_order_of_entry_does_not_matter(value: Any) -> None:
    assert canonical.dumps(shuffled(value)) == canonical.dumps(value)
    assert canonical.digest_of("d", shuffled(value)) == canonical.digest_of("d", value)


@given(VALUES, VALUES)
def test_different_values_have_different_bytes(one: Any, other: Any) -> None:
    # bool is an int to Python and not to JSON: compare with types.
    assert (canonical.dumps(one) == canonical.dumps(other)) == (json.dumps(one, sort_keys=True)
                                                                == json.dumps(other, sort_keys=True))


@given(VALUES)
def test_one_byte_more_of_space_is_refused(value: Any) -> None:
    data = canonical.dumps({"a": value})
    with pytest.raises(IntegrityError, match="canonical"):
        canonical.loads(data.replace(b":", b": ", 1))


def test_keys_are_in_order_of_their_utf8_bytes() -> None:
    # UTF-16 order, which RFC 8785 and JavaScript use, would put the astral key first.
    assert canonical.dumps({"\U0001f600": 1, "\uffee": 2, "a": 3}) == '{"a":3,"\uffee":2,"\U0001f600":1}'.encode()


@pytest.mark.parametrize("value", [1.0, float("nan"), None, {"a": None}, [1.5], {1: 2}, b"x", {"a": {1}}, "\ud800",
                                   {"\ud800": 1}])
def test_what_has_two_spellings_has_no_canonical_form(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical.dumps(value)


@pytest.mark.parametrize("data", [
    b"1.0", b"1e3", b"NaN", b"-Infinity", b"null", b'{"a":null}', b'{"a":1,"a":1}', b'{"b":1,"a":2}', b'"\\u0061"',
    b'"\\ud800"', b'{"a" :1}', b"\xff", b"", b"{", b"01", b'{"a":1}x', b"-0",
])
def test_what_is_not_canonical_is_refused_when_read(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        canonical.loads(data, where="records/x")
    assert caught.value.where == "records/x"


def test_a_duplicate_key_is_named() -> None:
    with pytest.raises(IntegrityError, match="duplicate key"):
        canonical.loads(b'{"a":1,"a":1}')


def test_swapping_two_named_inputs_changes_the_digest() -> None:
    """Snakemake sorts input hashes by value, so that a rule with A and B swapped has one key."""
    one, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert (canonical.digest_of("derivation", {"inputs": {"a": one, "b": other}})
            != canonical.digest_of("derivation", {"inputs": {"a": other, "b": one}}))


def test_equal_json_in_two_roles_has_two_digests() -> None:
    assert canonical.digest_of("derivation", {"a": 1}) != canonical.digest_of("outputs", {"a": 1})


def test_a_digest_never_changes() -> None:
    """Golden: a change here makes every store of every user cold."""
    assert canonical.digest_of("derivation", {"format": "stagecraft.derivation.v1", "params": {"é": [1, True, "x"]}}) \
        == "sha256:f2145da152cdfd847ad025c354a87ce77c8281a144fa03f7712024c318a2f440"
