"""Check `abi`: every symbol that a library of the image leaves undefined is there, in the version that it asks for.

Each strong reference must bind in the scope that the loader would search (checks/loader.py): the file's own closure,
the Python program, what `import torch` has loaded, the libraries of those that load it. References of torch's C++ and C
interfaces are named as such, with the torch versions that would satisfy them as far as they are known.
"""

from __future__ import annotations

from collections.abc import Iterator

from checks.libraries import Libraries, opened
from checks.symbols import Reference
from checks.torch_abi import is_torch, satisfying
from checks.verdict import CheckInputs, Finding


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: the file, below the site directory or from the root; `inside: <file>` for what its plugins need."""
    with opened(inputs) as libraries:
        inside: dict[str, list[str]] = {}
        found = [finding for path in libraries.own for finding in _judge(libraries, path, inside)]
        return found + [_plugins(libraries, provider, paths) for provider, paths in inside.items()]


def _plugins(libraries: Libraries, provider: str, paths: list[str]) -> Finding:
    """Files that use what their host process has, as plugins do."""
    names = ", ".join(libraries.subject(path).rpartition("/")[2] for path in paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return Finding("info", f"inside: {libraries.subject(provider)}", f"{names}{more}: works only inside a process that "
                   f"has /{provider} already", f"/{paths[0]}")


def _judge(libraries: Libraries, path: str, inside: dict[str, list[str]]) -> Iterator[Finding]:
    """The finding about a file, if any. What only a host process completes goes to `inside`, by who completes it."""
    lacking = list(unbound(libraries, path))
    if not lacking or libraries.optional(path) is not None:
        return
    image, required = libraries.image, path in libraries.required
    nowhere = [reference for reference in lacking if required or reference.name not in image.by_symbol]
    if nowhere:
        undefined = [reference.name for reference in image.libraries[path].undefined if not reference.weak]
        yield Finding("error", libraries.subject(path), _message(libraries, nowhere), f"/{path}",
                      _cure(nowhere, undefined, image.machine))
    elif lacking:
        inside.setdefault(image.by_symbol[lacking[0].name][0], []).append(path)


def unbound(libraries: Libraries, path: str) -> Iterator[Reference]:
    """Strong references of a file that bind to nothing that is loaded with it."""
    image = libraries.image
    available = [image.libraries[file] for file in dict.fromkeys(libraries.available(path))]
    company: list[str] | None = None
    for reference in image.libraries[path].undefined:
        if reference.weak or any(lib.gives(reference.name, reference.version) for lib in available):
            continue
        if libraries.driver_symbol(reference.name):
            continue
        if company is None:
            company = list(dict.fromkeys(file for root in libraries.company.get(path, ())
                                         for file in libraries.scope(root).files))
        if not any(image.libraries[file].gives(reference.name, reference.version) for file in company):
            yield reference


def _message(libraries: Libraries, lacking: list[Reference]) -> str:
    torch = [reference for reference in lacking if is_torch(reference.name)]
    first = (torch or lacking)[0]
    text = f"undefined symbol: {first.name}" + (f", version {first.version}" if first.version else "")
    if len(lacking) > 1:
        text += f" (and {len(lacking) - 1} more)"
    if torch:
        return f"{text}: compiled against another torch than {libraries.facts['torch'] or 'the one'} in the image"
    if first.name in libraries.image.by_symbol:
        return f"{text}: it is in /{libraries.image.by_symbol[first.name][0]}, in another version or not loaded"
    return f"{text}: no library of the image has it"


def _cure(lacking: list[Reference], undefined: list[str], machine: str) -> str:
    if not any(is_torch(reference.name) for reference in lacking):
        return "take a build that was linked whole, or add the library that has it"
    versions = satisfying(undefined, machine)
    if versions:
        return f"take a build for this torch, or torch {' or '.join(versions)}, which has all that it asks of torch"
    return "take a build for this torch, or the torch that it was built for"
