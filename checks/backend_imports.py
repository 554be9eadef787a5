"""Gate `backend-imports`: whatever Triton's vLLM backend takes from vLLM, the vLLM of the image has.

By syntax trees alone: nothing is imported. `from vllm.inputs.data import TokensPrompt` broke NVIDIA's backend with vLLM
0.20 (facts triton.md 0.5), and showed only when a model was loaded. Of imports that stand as alternatives in one
`try … except ImportError`, one must resolve. It proves that names are there, not that they take the same arguments.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cache.layer import LayerReader
from checks.verdict import CheckInputs, Finding

PACKAGE = "vllm"
DIRECTORY = "opt/tritonserver/backends/vllm"

#: A module's text by its name ("vllm.inputs"); "" for one that is no Python source; None if there is none.
Modules = Callable[[str], str | None]


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with the name that is not there as subject (`vllm.inputs.data.TokensPrompt`), or the backend's file."""
    site = inputs.facts["site"]
    with LayerReader(inputs.store, inputs.outputs["backend/index"]) as own, \
            LayerReader(inputs.store, inputs.outputs["vllm/index"]) as layer:
        sources = {}
        for path, entry in own.entries.items():
            if path.startswith(f"{DIRECTORY}/") and path.endswith(".py") and entry["type"] == "file":
                sources[path.removeprefix(f"{DIRECTORY}/")] = own.read(path).decode("utf-8", "replace")
        known: dict[str, str | None] = {}

        def text(name: str) -> str | None:
            if name not in known:
                known[name] = _read(layer, f"{site}/{name.replace('.', '/')}")
            return known[name]

        return judge(sources, text, inputs.facts["version"])


def judge(sources: dict[str, str], modules: Modules, version: str) -> list[Finding]:
    """Judge a backend's files by the modules of a vLLM. Pure."""
    found, names = [], _Names(modules)
    for file, text in sorted(sources.items()):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError) as error:
            found.append(Finding("error", file, f"not Python: {error}", f"/{DIRECTORY}/{file}", "correct it"))
            continue
        for need in _needs(tree):
            for name in names.missing(need):
                found.append(Finding(
                    "error", name, f"{file}:{need.line} imports it, and vLLM {version} has no such name",
                    f"/{DIRECTORY}/{file}", "take a backend for this vLLM, or a vLLM for this backend"))
    return sorted(set(found), key=lambda finding: finding.subject)


@dataclass(frozen=True)
class _Need:
    """What an import, or a `try` around imports, needs of vLLM: all of one of the branches.

    A branch holds pairs of module and name (the name is "" for a module alone), and needs of its own.
    """

    line: int
    branches: tuple[tuple[tuple[str, str] | _Need, ...], ...]


def _needs(tree: ast.AST) -> Iterator[_Need]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _typing(node.test):
            yield from _needs(_block(node.orelse))
        elif isinstance(node, ast.Try) and any(map(_import_error, node.handlers)):
            # A branch without an import of vLLM does without: nothing is needed then.
            bodies = [node.body, *(handler.body for handler in node.handlers
                                   if _import_error(handler) and not _gives_up(handler.body))]
            yield _Need(node.lineno, tuple(tuple(_needs(_block(body))) for body in bodies))
            rest = [statement for handler in node.handlers if not _import_error(handler) for statement in handler.body]
            yield from _needs(_block([*rest, *node.orelse, *node.finalbody]))
        elif isinstance(node, ast.Import):
            wanted = tuple((one.name, "") for one in node.names if one.name.partition(".")[0] == PACKAGE)
            if wanted:
                yield _Need(node.lineno, (wanted,))
        elif isinstance(node, ast.ImportFrom):
            if not node.level and (node.module or "").partition(".")[0] == PACKAGE:
                yield _Need(node.lineno, (tuple((str(node.module), one.name) for one in node.names),))
        else:
            yield from _needs(node)


def _block(statements: Sequence[ast.stmt]) -> ast.Module:
    return ast.Module(list(statements), [])


def _typing(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or \
        (isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING")


def _import_error(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in ("ImportError", "ModuleNotFoundError"))
               for kind in kinds)


def _gives_up(body: Sequence[ast.stmt]) -> bool:
    """A handler that ends the program, or hands the error on, is no alternative."""
    last = body[-1]
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        return ast.unparse(last.value.func) in ("sys.exit", "os._exit", "exit", "quit")
    return isinstance(last, ast.Raise)


@dataclass
class _Names:
    """The names that modules have, each module read once."""

    modules: Modules
    _read: dict[str, set[str] | None] = field(default_factory=dict)

    def missing(self, need: _Need) -> list[str]:
        """The full names that are not there, of the first branch; nothing if one branch has all of its own."""
        branches = []
        for branch in need.branches:
            gone: list[str] = []
            for item in branch:
                if isinstance(item, _Need):
                    gone += self.missing(item)
                elif not self._has(*item):
                    gone.append(".".join(filter(None, item)))
            branches.append(gone)
        return branches[0] if all(branches) else []

    def _has(self, module: str, name: str) -> bool:
        if not self._reachable(module):
            return False
        names = self._of(module)
        if not name or name == "*":
            return True
        return names is None or name in names or self._reachable(f"{module}.{name}")

    def _reachable(self, module: str) -> bool:
        parts = module.split(".")
        return all(self.modules(".".join(parts[:depth])) is not None for depth in range(1, len(parts) + 1))

    def _of(self, module: str) -> set[str] | None:
        """Names at the top level of a module; None where that cannot be told from its text (compiled, unreadable)."""
        if module not in self._read:
            self._read[module] = set()  # a circle of star imports ends here
            text = self.modules(module)
            try:
                self._read[module] = self._bound(ast.parse(text), module) if text else None
            except (SyntaxError, ValueError, RecursionError):
                self._read[module] = None
        return self._read[module]

    def _bound(self, tree: ast.AST, module: str) -> set[str]:
        found: set[str] = set()
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
                if node.name == "__getattr__":  # names made on demand: those that the module's tables spell out
                    found |= {one.value for one in ast.walk(tree)
                              if isinstance(one, ast.Constant) and isinstance(one.value, str)}
            elif isinstance(node, ast.Import):
                found |= {(one.asname or one.name).partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                for one in node.names:
                    found |= self._star(node, module) if one.name == "*" else {one.asname or one.name}
            elif isinstance(node, ast.expr):
                found |= {one.id for one in ast.walk(node)
                          if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            elif not (isinstance(node, ast.If) and _typing(node.test)):
                found |= self._bound(node, module)
            else:
                found |= self._bound(_block(node.orelse), module)
        return found

    def _star(self, node: ast.ImportFrom, module: str) -> set[str]:
        name = str(node.module or "")
        if node.level:
            base = module.split(".")
            package = base if self.modules(f"{module}.__init__") is not None else base[:-1]  # of vllm/x/__init__.py
            name = ".".join([*package[:len(package) - node.level + 1], *([name] if name else [])])
        return (self._of(name) or set()) if name.partition(".")[0] == PACKAGE else set()


def _read(layer: LayerReader, path: str) -> str | None:
    for place in (f"{path}.py", f"{path}/__init__.py"):
        entry = layer.resolve(place)
        if entry is not None and entry["type"] == "file":
            return layer.read(entry["path"]).decode("utf-8", "replace") or "\n"
    entry = layer.resolve(path)
    if entry is not None and entry["type"] == "directory":
        return "\n"  # a namespace package
    return "" if any(layer.resolve(f"{path}{suffix}") for suffix in (".abi3.so", ".so")) else None
