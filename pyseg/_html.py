"""HTML pages from jinja templates; jinja2 is in the extra `report`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pyseg._extras import requires


def render(template: Path, **values: Any) -> str:
    """Renders a template with values.

    Text is escaped. The filter ``base64`` encodes binary content such as a picture.

    Args:
        template: A file in jinja's syntax.
        values: The values of all of its variables.

    Raises:
        pyseg.errors.UserError: jinja2 is not installed.
    """
    with requires("report", "a page"):
        import jinja2
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
