"""Self-contained HTML pages from jinja templates; jinja2 is in the extra `report`.

Templates extend ``page.html.jinja``, which puts the style sheet and the scripts into the page;
other files:

- ``table.html.jinja``: the macro of a `pyseg._table.Table`;
- ``kit.css``: colors of the light and the dark mode, tables, charts, strips;
- ``kit.js``: elements, the color mode, tooltips, tables that can be sorted and searched;
- ``charts.js``: charts of curves and points, which can be hovered and zoomed;
- ``strips.js``: scores of classes over time;
- ``start.js``: turns a page's elements into the above.

A page loads nothing from elsewhere, and a content security policy lets only its own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from pyseg._extras import requires

_FOLDER = Path(__file__).parent
_SCRIPTS = ("kit.js", "charts.js", "strips.js", "start.js")


def render(template: Path, **values: Any) -> str:
    """Renders a template with values.

    Text is escaped. The filter ``data`` encodes a value as JSON that can stand in a script element.

    Args:
        template: A file in jinja's syntax.
        values: The values of all of its variables.

    Raises:
        pyseg.errors.UserError: jinja2 is not installed.
    """
    with requires("report", "a page"):
        import jinja2
        from markupsafe import Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = lambda value: Markup(script_json(value))
    script = "\n".join(['(() => {\n"use strict";', *(_read(name) for name in _SCRIPTS), "})();\n"])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template.name).render(
        values, style=Markup(_read("kit.css")), script=Markup(script), script_digest=digest
    )


def script_json(value: Any) -> str:
    r"""Returns a value as JSON that cannot end the script element in which it stands.

    Example:
        >>> script_json({"name": "</script>"})
        '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
