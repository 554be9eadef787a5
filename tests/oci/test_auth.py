import pytest

from oci.auth import parse_challenge


@pytest.mark.parametrize(("header", "scheme", "values"), [
    ('Bearer realm="https://a.example/token",service="s",scope="repository:x:pull,push"', "bearer",
     {"realm": "https://a.example/token", "service": "s", "scope": "repository:x:pull,push"}),
    ('Basic realm="Registry Realm"', "basic", {"realm": "Registry Realm"}),
    ('Basic realm="x", Bearer realm="https://a.example/t"', "bearer", {"realm": "https://a.example/t"}),
    ('bearer realm=https://a.example/t, error="insufficient_scope"', "bearer",
     {"realm": "https://a.example/t", "error": "insufficient_scope"}),
    ('Bearer realm="a\\"b, Basic c"', "bearer", {"realm": 'a"b, Basic c'}),
    ("", "", {}), ("nonsense", "", {}),
])
def test_challenges_are_read(header: str, scheme: str, values: dict[str, str]) -> None:
    assert parse_challenge(header) == (scheme, values)
