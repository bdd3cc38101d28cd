"""Other people's text at its worst, and a pack that is full of it: one list for unit tests, page tests and the browser."""

import hashlib
import json
from pathlib import Path

from scope.features.face import Pack
from tests.features.toy_pack import HOSTILE as TOKENS
from tests.features.toy_pack import make_toy_pack

HOSTILE = [
    *TOKENS,
    "<a href=http://evil.example>x</a>",
    "<img src=http://evil.example/beacon.png>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<details open ontoggle=alert(1)>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "data:text/html,<script>alert(1)</script>",
    "http://evil.example/plain",
    "www.evil.example",
    ":red[coloured] :smile: :rainbow-background[x]",
    "# heading\n- item\n> quote",
    "```\ncode\n```",
    "~~gone~~ <u>u</u>",
    "=cmd|' /C calc'!A0",
    '-2+3+cmd|" /C calc"!A0',
    "\t=1+1",
    "\u202egnp.exe\u202c",
    "x" * 400,
    "</script><script>alert(1)</script>",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "\ud800 lone surrogate",
]
"""Texts that must be shown and never obeyed."""

MARKS = ("<script", "<img", "<svg", "<b>", "<iframe", "<style", "<a href", "<link", "<meta", "<details", "<math")
MARKS += ("](", "**bold", "$\\href", ":material/delete", ":red[", "~~gone")
"""What would be obeyed, were it to stand in HTML or Markdown as it is."""


def make_hostile_pack(folder: Path) -> Pack:
    """A toy pack whose tokens, documents, model, labels, sources, notes and lists are all hostile, in a folder named so too."""
    make_toy_pack(folder)
    storable = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    manifest = json.loads((folder / "manifest.json").read_text())
    documents = json.dumps(storable[:7])
    (folder / "documents.json").write_text(documents)
    manifest["files"]["documents.json"] = {
        "size": len(documents.encode()),
        "sha256": hashlib.sha256(documents.encode()).hexdigest(),
    }
    manifest["model"]["model"], manifest["corpus"]["name"] = storable[1], storable[0]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    store = Pack.open(folder)
    for i in range(store.d_sae):
        text = storable[i]
        store.notes.set_label(i, text, storable[-i - 2], 0.5)
        store.notes.set_note(i, storable[len(storable) - 1 - i])
    for i, text in enumerate(storable):
        store.notes.add_to_list(text, [i % store.d_sae, 7])
    store.notes.set_label(7, storable[1], "you", detail={"author": storable[0]})
    store.refresh()
    return store
