"""Names of images: `REGISTRY/REPOSITORY[:TAG][@DIGEST]`.

The registry is always written out: which one an unqualified name means is the setting of some machine, and a lock must
not depend on that.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cache.errors import InputError

#: Registries whose API is not served under the name that people write.
_API_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}

_HOST = r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::\d{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<registry>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")


@dataclass(frozen=True)
class Reference:
    """An image's name. `tag` and `digest` are empty when not written."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def host(self) -> str:
        """Host and port that serve the registry's API."""
        return _API_HOSTS.get(self.registry, self.registry)

    @property
    def name(self) -> str:
        """`REGISTRY/REPOSITORY`."""
        return f"{self.registry}/{self.repository}"

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """Read an image's name.

    Raises:
        InputError: not a name with its registry; says what is missing.
    """
    match = _REFERENCE.fullmatch(text)
    first = text.partition("/")[0]
    if match is None or not ("/" in text and ("." in first or ":" in first or first == "localhost")):
        named = "/" in text and ("." in first or ":" in first or first == "localhost")
        raise InputError(
            "not an image reference" if named else "the image reference names no registry", where=repr(text),
            expected="REGISTRY/REPOSITORY[:TAG][@sha256:…] in lower case, such as registry.example.org/team/image:1.0")
    return Reference(match["registry"], match["repository"], match["tag"] or "", match["digest"] or "")


def is_loopback(host: str) -> bool:
    """True if `host[:port]` is this machine by its name: such a registry may be spoken to without TLS."""
    name = re.sub(r":\d+$", "", host) if not host.startswith("[") or "]:" in host else host
    name = name.strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
