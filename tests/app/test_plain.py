"""Text of tokens, labels and files, where Streamlit would read Markdown."""

import pytest
from scope.app.kit.plain import plain


@pytest.mark.parametrize("text", ["http://evil.example", "HTTPS://evil.example", "www.evil.example", "a@evil.example"])
def test_a_bare_address_is_broken_so_that_no_link_is_made_of_it(text):
    shown = plain(text).replace("\\", "")
    assert text not in shown
    assert shown.replace("\u2060", "") == text


@pytest.mark.parametrize("mark", list("*_`[]()<>#$:!|~"))
def test_every_mark_of_markdown_is_escaped(mark):
    assert plain(f"a{mark}b") == f"a\\{mark}b"
