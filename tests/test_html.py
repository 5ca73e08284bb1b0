"""pyseg._html: data in pages."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg import _html

HOSTILE = st.text() | st.sampled_from(
    ["</script>", "<!--<script>", "]]>", "{{ 7 * 7 }}", "\u2028", "&lt;", "\ud800", "\0", '"><b>']
)


@settings(max_examples=50, deadline=None, database=None)
@given(st.dictionaries(HOSTILE, st.lists(HOSTILE | st.integers() | st.none())))
def test_any_text_is_data_of_a_script(value: dict) -> None:
    text = _html.script_json(value)
    assert json.loads(text) == value
    assert not re.search("[<>&]", text)


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _html.script_json(float("nan"))


@settings(max_examples=20, deadline=None, database=None)
@given(name=HOSTILE)
def test_any_text_is_escaped(name: str) -> None:
    """Whatever a text says, the page has the same elements."""
    pytest.importorskip("jinja2")
    template = Path(_html.__file__).with_name("page.html.jinja")
    found = [_tags(_html.render(template, title=title)) for title in ("plain", name)]
    assert found[0] == found[1]


def _tags(page: str) -> list[str]:
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, _: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    return tags
