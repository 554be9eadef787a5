"""Layers made of small wheels, and a judge over them: what tests of checks start from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assemble.triton_tree import build as build_tree
from assemble.wheels import build as build_wheels
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.store import Store
from checks.registry import check
from checks.verdict import Verdict, judge

SITE = "usr/local/lib/python3.11/dist-packages"
LAYOUT = Path(__file__).resolve().parents[2] / "triton" / "pytriton-layout.yaml"

TARGET: dict[str, Any] = {
    "platform": "linux/arm64", "device": {"cuda": "13.0", "compute_capability": "11.0"},
    "vllm": {"version": "0.32.0"}, "python": {"version": "3.11"}, "wheels": {"requirements": []},
    "image": {"environment": {}},
}


class Gates:
    """Builds layers by stage and judges them; `target` and `lock` are plain data that a test may change."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.target: dict[str, Any] = {**TARGET, "device": dict(TARGET["device"]), "wheels": {"requirements": []},
                                       "image": {"environment": {}}}
        self.lock: dict[str, Any] = {
            "python": {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36", "site": SITE,
                       "scripts": "usr/local/bin", "data": "usr/local"},
            "base": {"kind": "debian"}, "wheels": [], "files": []}
        self.outputs: dict[str, str] = {}

    def layer(self, stage: str, *wheels: Path, **params: Any) -> None:
        """Assemble wheels as the layer of a stage and enter them in the lock."""
        given = {"python": "3.11", "interpreter": "/usr/bin/python3.11", "purelib": SITE, "platlib": SITE,
                 "scripts": "usr/local/bin", "data": "usr/local", "headers": "usr/local/include", **params}
        inputs = {f"wheels/{wheel.name}": self.store.put(wheel.read_bytes()).digest for wheel in wheels}
        architecture = self.target["platform"].partition("/")[2]
        self._enter(stage, build_wheels(BuildContext(self.store, given, inputs,
                                                     {"os": "linux", "architecture": architecture})))
        self.lock["wheels"] += [{"name": wheel.name.split("-")[0].replace("_", "-").lower(),
                                 "version": wheel.name.split("-")[1]} for wheel in wheels]

    def triton(self, wheel: Path, python: str = "3.11") -> None:
        """The server tree, with the stub of `python`."""
        inputs = {"wheel": self.store.put(wheel.read_bytes()).digest,
                  "layout": self.store.put(LAYOUT.read_bytes()).digest}
        self._enter("triton", build_tree(BuildContext(
            self.store, {"python": python, "root": "opt/tritonserver", "version": "0.7.0"}, inputs,
            {"os": "linux", "architecture": self.target["platform"].partition("/")[2]})))
        self.lock["files"] = [{"name": "nvidia-pytriton", "version": "0.7.0"}]

    def files(self, stage: str, files: Mapping[str, bytes | str], packages: Mapping[str, str] | None = None) -> None:
        """A layer of these files: bytes, or the target of a symlink; and the packages that it is said to hold."""
        with LayerWriter(self.store) as writer:
            above = {"/".join(path.split("/")[:count]) for path in files for count in range(1, path.count("/") + 1)}
            for path in sorted({*files, *above}, key=lambda path: path.encode()):
                content = files.get(path)
                if content is None:
                    writer.directory(path)
                elif isinstance(content, str):
                    writer.symlink(path, content)
                else:
                    writer.file(path, len(content), [content], 0o755)
            layer = writer.finish()
        listed = [{"name": name, "version": version, "type": "pypi", "requires_dist": []}
                  for name, version in (packages or {}).items()]
        self._enter(stage, {"layer": layer.layer, "index": layer.index,
                            "packages": self.store.put(json.dumps({"packages": listed}).encode())})
        self.lock["wheels"] = [wheel for wheel in self.lock["wheels"] if wheel["name"] not in (packages or {})]
        self.lock["wheels"] += [{"name": name, "version": version} for name, version in (packages or {}).items()]

    def _enter(self, stage: str, outputs: Mapping[str, Any]) -> None:
        self.outputs.update({f"{stage}/{name}": blob.digest for name, blob in outputs.items()})

    def judge(self, name: str) -> Verdict:
        one = check(name)
        read = {f"{stage}/{output}": self.outputs[f"{stage}/{output}"] for stage, output in one.outputs
                if f"{stage}/{output}" in self.outputs}
        return judge(self.store, one, read, one.facts(self.target, self.lock))

    def errors(self, name: str) -> dict[str, str]:
        """Subject to message of the errors of a check."""
        return {finding.subject: finding.message for finding in self.judge(name).errors}


def subjects(findings: Iterable[Any]) -> list[str]:
    return [finding.subject for finding in findings]
