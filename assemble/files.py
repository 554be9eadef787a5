"""Builder `files-layer`: files rendered from templates of the repository, as a layer.

Inputs: templates by name. Params: `files` = [{"path", "template", "mode"}], `values` = what the templates may use.
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
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - shell, not HTML
    rendered: dict[str, tuple[bytes, int]] = {}
    for file in context.params["files"]:
        template = context.store.read(context.inputs[file["template"]]).decode()
        try:
            text = environment.from_string(template).render(context.params["values"])
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            raise InputError(f"the template cannot be rendered: {error.message}",
                             where=file["template"] + (f":{line}" if line else "")) from error
        rendered[file["path"]] = (text.encode(), file["mode"])
        context.log(f"rendered /{file['path']}")
    with LayerWriter(context.store) as writer:
        written: set[str] = set()
        for path in sorted(rendered, key=str.encode):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(parts[:depth])
                if directory not in written:
                    writer.directory(directory)
                    written.add(directory)
            content, mode = rendered[path]
            writer.file(path, len(content), [content], mode)
        layer = writer.finish()
    return {"layer": layer.layer, "index": layer.index}
