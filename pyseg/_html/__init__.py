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
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyseg._extras import requires

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Assets:
    """The style sheet and the script of a page, and what the page may load.

    Attributes:
        style: The style sheet.
        script: The script.
        sources: Directives of the content security policy, beside that of scripts.
    """

    style: str
    script: str
    sources: Mapping[str, str]

    @staticmethod
    def read(scripts: Sequence[Path], styles: Sequence[Path], sources: Mapping[str, str]) -> Assets:
        """Joins files; those of this package are named without a folder.

        Args:
            scripts: Files of JavaScript; what one declares, all others see, but nothing else does.
            styles: Style sheets.
            sources: Directives of the policy; without ``style-src``, only the style sheet holds,
                and no attribute ``style``.
        """
        parts = ['(() => {\n"use strict";', *map(_read, scripts), "})();\n"]
        return Assets("\n".join(map(_read, styles)), "\n".join(parts), sources)

    @property
    def policy(self) -> str:
        """The content security policy."""
        own = {"style-src": _digest(self.style), "script-src": _digest(self.script)}
        directives = {"default-src": "'none'", **own, **self.sources}
        return "; ".join(f"{name} {value}" for name, value in directives.items())


@functools.cache
def _self_contained() -> Assets:
    scripts = [Path(f"{name}.js") for name in ("kit", "charts", "strips", "start")]
    sources = {"img-src": "data:", "media-src": "* file:", "style-src": "'unsafe-inline'"}
    return Assets.read(scripts, [Path("kit.css")], sources)


def render(template: Path, assets: Assets | None = None, **values: Any) -> str:
    """Renders a template with values.

    Text is escaped. The filter ``data`` encodes a value as JSON that can stand in a script element.

    Args:
        template: A file in jinja's syntax.
        assets: The style sheet, the script and the policy; default: those above.
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
    assets = assets or _self_contained()
    style, script = Markup(assets.style), Markup(assets.script)
    return environment.get_template(template.name).render(
        values, style=style, script=script, policy=Markup(assets.policy)
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


def _read(file: Path) -> str:
    return (_FOLDER / file).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
