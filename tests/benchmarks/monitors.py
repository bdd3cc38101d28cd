"""Monitors of the bundled model on two labelled tasks made from the bundled corpus, beside every baseline and null.

    python -m tests.benchmarks.monitors --out FOLDER --pack runs/demo/pack

domain: a paragraph of torch's documentation or of numpy's. form: lines of code or a paragraph of prose, from all packages of
the bundled corpus. The texts are written to FOLDER/domain.jsonl and FOLDER/form.jsonl, for `scope monitor fit` too.
"""

import argparse
import json
import random
import re
from pathlib import Path

from scope.activations.corpus.sources import open_corpus

import scope

SITE = "blocks.2.hook_resid_post"
EACH = 600
_SECTION = re.compile(r"---|^(Args|Arguments|Attributes|Keyword|Notes?|Parameters|Raises|Returns|Yields|See)\b")
"""Headings of docstrings, whose style alone tells packages apart."""
_PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.) ?", re.M)


def paragraphs() -> list[tuple[str, str, bool]]:
    """(qualified name, paragraph of 60 to 400 characters, whether it is code) of the documentation in the bundled corpus."""
    rows = []
    for document in open_corpus("bundled").documents():
        if document.name.startswith("written-"):
            continue
        _, _, body = document.text.partition("\n\n")  # the first line is the name, which would give the domain away
        for part in re.split(r"\n\s*\n", body):
            lines = [line for line in part.splitlines() if line.strip()]
            prompts = [line for line in lines if re.match(r"\s*(>>>|\.\.\.)", line)]
            code = bool(prompts) and lines[0].lstrip().startswith(">>>")
            if prompts and not code:
                continue
            text = "\n".join(_PROMPT.sub("", line) for line in prompts) if code else " ".join(line.strip() for line in lines)
            if 60 <= len(text) <= 400 and (code or (re.match(r"[A-Z][a-z]", text) and not _SECTION.search(text))):
                rows.append((document.name, text, code))
    return rows


def tasks(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Task -> rows of text, label and group; as many of each label."""
    found = paragraphs()
    random.Random(seed).shuffle(found)
    domain = [(text, name.split(".")[0], name) for name, text, code in found if not code]
    form = [(text, "code" if code else "prose", name) for name, text, code in found]

    def balanced(rows: list[tuple[str, str, str]], labels: tuple[str, str]) -> list[dict[str, str]]:
        by_label = [[row for row in rows if row[1] == label] for label in labels]
        n = min(EACH, *map(len, by_label))
        return [{"text": t, "label": label, "group": name.split(".")[0]} for rows in by_label for t, label, name in rows[:n]]

    return {"domain": balanced(domain, ("torch", "numpy")), "form": balanced(form, ("code", "prose"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="pack of an SAE of the bundled model, for --latents auto")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    methods = {"probe": {"probe": True}, "difference": {"difference": True}}
    if flags.pack:
        methods["latents"] = {"latents": "auto", "pack": flags.pack}
    for name, rows in tasks().items():
        file = flags.out / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        positive = {"domain": "torch", "form": "code"}[name]
        for method, settings in methods.items():
            place = {} if method == "latents" else {"model": "bundled", "site": SITE}
            monitor = scope.fit_monitor(
                file, positive=positive, fpr=0.01, out=flags.out / f"{name}-{method}", **place, **settings
            )
            print(f"== {name}, {method}, {monitor.aggregation}\n{monitor}\n", flush=True)


if __name__ == "__main__":
    main()
