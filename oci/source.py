"""Where the blobs of a base image lie: the source of kind `oci` for `lock.fetch`.

In a lock such a file has `index` = "REGISTRY/REPOSITORY" and `file` = its digest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from cache.errors import FetchError
from lock.sources import Location, Wanted
from oci.reference import parse_reference
from oci.registry import PULL, Patience, Registry


class OciSource:
    """Locates blobs in registries. Usable from several threads; one connection state a registry."""

    def __init__(self, environ: Mapping[str, str] | None = None, patience: Patience | None = None) -> None:
        self._environ, self._patience = environ, patience
        self._registries: dict[str, Registry] = {}
        self._lock = threading.Lock()

    def locate(self, wanted: Wanted) -> Location:
        """The address of a blob and the authorization for it, asked for anew each time.

        Raises:
            FetchError: the registry does not have it, refuses it, or does not answer.
        """
        reference = parse_reference(wanted.index)
        with self._lock:
            registry = self._registries.get(reference.registry)
            if registry is None:
                registry = Registry.connect(reference, patience=self._patience, environ=self._environ)
                self._registries[reference.registry] = registry
        scope, path = PULL.format(reference.repository), f"{reference.repository}/blobs/{wanted.digest}"
        # Asking for the blob itself, not for /v2/: some registries want authorization only for some repositories.
        response = registry.request("HEAD", path, scope, headers={"Accept-Encoding": "identity"})
        response.close()
        if response.status_code == 404:
            raise FetchError("the registry does not have a layer of the base image any more", where=wanted.index,
                             expected=wanted.digest, found="status 404",
                             cure="lock again, or push the base image there again")
        registry.expect(response, wanted.index, 200, 206, 307)
        header = registry.authority.header(scope)
        return Location(urls=(registry.base + path,), headers={"Authorization": header} if header else {})
