"""Builder `files-layer`: files of the repository and links, as a layer.

Inputs: templates and other files by name. Params: `files` = [{"path", "template", "mode"} (rendered),
{"path", "copy", "mode"} (as it is), {"path", "link"} (a symlink to that) or {"path", "directory": true, "mode"}],
`values` = what the templates may use.
An undefined name in a template is an error. Outputs: `layer`, `index`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import InputError
from cache.store import Blob


def build(context: BuildContext) -> Mapping[str, Blob]:
    """Render every file and write the layer.

    Raises:
        InputError: a template that does not parse, or that uses a name it is not given.
    """
    made: dict[str, tuple[bytes | str | None, int]] = {}  # content, what a link leads to, None for a directory; mode
    for file in context.params["files"]:
        if "directory" in file:
            made[file["path"]] = (None, file["mode"])
        elif "link" in file:
            made[file["path"]] = (file["link"], 0)
        elif "copy" in file:
            made[file["path"]] = (context.store.read(context.inputs[file["copy"]]), file["mode"])
        else:
            made[file["path"]] = (_rendered(context, file["template"]), file["mode"])
            context.log(f"rendered /{file['path']}")
    with LayerWriter(context.store) as writer:
        written: set[str] = set()
        for path in sorted(made, key=str.encode):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(parts[:depth])
                if directory not in written:
                    writer.directory(directory)
                    written.add(directory)
            content, mode = made[path]
            if content is None:
                writer.directory(path, mode)
                written.add(path)
            elif isinstance(content, str):
                writer.symlink(path, content)
            else:
                writer.file(path, len(content), [content], mode)
        layer = writer.finish()
    return {"layer": layer.layer, "index": layer.index}


def _rendered(context: BuildContext, name: str) -> bytes:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - shell, not HTML
    template = context.store.read(context.inputs[name]).decode()
    try:
        return environment.from_string(template).render(context.params["values"]).encode()
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"the template cannot be rendered: {error.message}",
                         where=name + (f":{line}" if line else "")) from error
