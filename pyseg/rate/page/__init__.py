"""The page that asks a rater; jinja2 is in the extra `report`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyseg import _html

_FOLDER = Path(__file__).parent


def page(schemes: Iterable[str] = ()) -> tuple[str, str]:
    """Returns the page, and its content security policy for a header.

    The page loads only from its own server: questions, videos and frames, and nothing is embedded.

    Args:
        schemes: Schemes such as "https:", from which videos may be played too.

    Raises:
        pyseg.errors.UserError: jinja2 is not installed.

    Example:
        >>> html, policy = page(["https:"])
        >>> "media-src 'self' https:" in policy, "script-src 'sha256-" in policy
        (True, True)
    """
    sources = {
        "connect-src": "'self'",
        "img-src": "data:",
        "media-src": " ".join(["'self'", *schemes]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    scripts = [Path("kit.js"), *(_FOLDER / f"{name}.js" for name in ("player", "queue", "rate"))]
    assets = _html.Assets.read(scripts, [Path("kit.css"), _FOLDER / "rate.css"], sources)
    html = _html.render(_FOLDER / "rate.html.jinja", assets, title="Rate segments")
    return html, assets.policy
