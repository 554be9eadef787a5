"""The program of the stage `bytecode`: bytecode for the modules of an image, made by the image's own Python.

    python -S -P -B -W ignore compile_bytecode.py OUT DIRECTORY…

Below OUT it writes for each `<DIRECTORY>/…/x.py`, an absolute path of the image, and for the standard library,
`…/__pycache__/x.cpython-311.pyc`: an unchecked hash-based file (PEP 552), which Python takes without looking at the
source. What has bytecode already gets none, nor what cannot be imported by its name, what is no valid source, a link.

The same bytes whatever the order, the machine and how many work (STAGECRAFT_JOBS): marshal marks an object if
something else refers to it too (bpo-34093), which depends on all that a process did before, so each file is compiled
in a process of its own, forked from one that has done the same few things always.
"""

import _imp
import importlib.util
import marshal
import os
import sys

MAGIC = importlib.util.MAGIC_NUMBER
RAW_MAGIC = int.from_bytes(MAGIC, "little")
TAG = sys.implementation.cache_tag
#: Hash-based, and not checked when it is loaded.
UNCHECKED = (1).to_bytes(4, "little")
#: How a child says what became of its file.
WRITTEN, NO_SOURCE, BROKEN = 0, 1, 2


def sources(directory):
    """Modules below a directory, in byte order."""
    for place, names, files in os.walk(directory, onerror=give_up):
        names[:] = sorted(name for name in names if name.isidentifier() and name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(place, name)
            if name.endswith(".py") and name[:-3].isidentifier() and os.path.isfile(path) and not os.path.islink(path):
                yield path


def give_up(error):
    """What cannot be listed must not be left out."""
    raise error


def beside(path):
    """Where Python looks for the bytecode of a source."""
    directory, name = os.path.split(path)
    return f"{directory}/__pycache__/{name[:-3]}.{TAG}.pyc"


def compiled(path):
    """The bytecode file of a source."""
    with open(path, "rb") as file:
        source = file.read()
    code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    return MAGIC + UNCHECKED + _imp.source_hash(RAW_MAGIC, source) + marshal.dumps(code)


def in_child(path, target):
    """Compile one file in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        try:
            content = compiled(path)
        except (SyntaxError, ValueError, RecursionError):
            os._exit(NO_SOURCE)
        with open(target, "xb") as file:
            file.write(content)
        os._exit(WRITTEN)
    except BaseException as error:
        os.write(2, f"{path}: {error!r}\n".encode("utf-8", "backslashreplace"))
        os._exit(BROKEN)


def finish(running, results):
    """Wait for one child."""
    child, status = os.wait()
    path, code = running.pop(child), os.waitstatus_to_exitcode(status)
    if code not in results:
        raise SystemExit(f"{path}: its compile ended with {code}")
    results[code] += 1
    if code == NO_SOURCE:
        print(f"no bytecode: {path}")


def main(out, directories, jobs):
    """Compile all."""
    wanted = {path for directory in directories if os.path.isdir(directory) for path in sources(directory)}
    wanted = sorted(path for path in wanted if not os.path.lexists(beside(path)))
    for directory in {os.path.dirname(beside(path)) for path in wanted}:
        os.makedirs(out + directory, exist_ok=True)
    # What the first compile makes and Python keeps is there in all children or in none.
    marshal.dumps(compile("def f(x):\n    return x in {1, None}\n", "/first.py", "exec", dont_inherit=True, optimize=0))
    running, results = {}, {WRITTEN: 0, NO_SOURCE: 0}
    for path in wanted:
        if len(running) == jobs:
            finish(running, results)
        running[in_child(path, out + beside(path))] = path
    while running:
        finish(running, results)
    print(f"{len(wanted)} modules: {results[WRITTEN]} with bytecode, {results[NO_SOURCE]} that {TAG} does not compile")


if __name__ == "__main__":
    main(sys.argv[1], [os.path.dirname(os.__file__), *sys.argv[2:]], int(os.environ.get("STAGECRAFT_JOBS", "1")))
