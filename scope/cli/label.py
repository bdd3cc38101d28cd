"""`scope label`: labels by rules or by a language model, each tested on text that it has not seen."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from scope.workflows.settings import ModelSettings

_FOREMOST = 100


@dataclass(frozen=True, kw_only=True)
class Command(ModelSettings):
    """Have latents labelled from their examples, and each label tested by detection on others. (Published labels are taken in
    by `scope label import PACK`; see `scope label import --help`.)

    With rules, each latent gets the short rule (token, class of token, what stands before, place in the line, domain, or two of
    them) that best predicts its firings in half of the text; its score is F1 in the other half, beside the best single token's
    and that of a rule for shuffled activations. A latent that no rule predicts shows its strongest contexts instead.
    A label is kept in the pack with who wrote it, when and how, and with its score: the balanced accuracy with which the same
    writer tells firing from silent windows that it was not shown, beside that of another latent's label on the same windows.
    Examples of the pack's text are sent to the address given, and nowhere else. Stopped, the same command goes on.
    """

    pack: tyro.conf.Positional[Path]
    """Pack that `scope features` wrote."""

    by: Annotated[str, tyro.conf.arg(name="with")]
    """Who writes: the address of an OpenAI-compatible server (http://127.0.0.1:11434/v1), a model as `scope harvest` takes it,
    transformers:NAME; or, without any model, rules, or tokens (the older labels from token statistics)."""

    model: str | None = None
    """Name of the model at that address; a local model is named by --with."""

    key: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, where one is needed."""

    latents: str | None = None
    """Which: numbers and ranges (3,17,40-60), starred, COLUMN:N for the foremost N. None: out_score:100; with rules or tokens,
    all."""

    max: int | None = None
    """Requests to make at most: one a label, two for its test. None: as many as it takes."""

    test: bool = True
    """Test each label by detection. Without, a label costs one request instead of three, but has no score."""

    again: bool = False
    """Make labels anew that this writer has given. What a person wrote is never replaced."""

    per_minute: float = 0
    """Requests a minute at most; 0 for no limit."""

    at_once: int = 4
    """Requests under way at once; a model on this machine answers one after the other."""

    seed: int = 0
    """Random seed for the draw and order of windows, and for the latents whose labels are the null."""

    def run(self) -> None:
        from scope.cli.packs import pack_folder
        from scope.cli.progress import console, progress_bar
        from scope.errors import ConfigError
        from scope.features.face import Pack
        from scope.features.labels.label import label_latents, open_latents
        from scope.features.pack.search import chosen

        if self.at_once < 1 or self.per_minute < 0 or (self.max is not None and self.max < 1):
            raise ConfigError("at_once and max must be at least 1, and per_minute not below 0.")
        store = Pack.open(pack_folder(self.pack))
        latents = chosen(store, self.latents or (None if self.by in ("rules", "tokens") else _foremost(store)))
        if self.by == "rules":
            self._by_rules(console, store, latents)
            return
        writer = self._writer()
        todo = open_latents(store, latents, writer, self.again)
        _plan(console, store, writer, self, len(latents), len(todo))
        made = []
        options = {"seed": self.seed, "again": self.again, "test": self.test, "max_requests": self.max, "at_once": self.at_once}
        try:
            with progress_bar("Labelling", unit="latents") as on_progress:
                for found in label_latents(store, latents, writer, **options):
                    made.append(found)
                    on_progress(len(made), len(todo), _means(made))
        finally:
            _report(console, store, made, len(todo))

    def _by_rules(self, console, store, latents: list[int]) -> None:
        from scope.cli.progress import print_note, progress_bar
        from scope.features.labels.rule_labels import label_by_rules
        from scope.features.pack.format import FIRINGS

        if FIRINGS not in store.manifest.files:
            print_note(
                f"this pack was made by an earlier version and holds at most {store.firing_sample.shape[1]} sampled firings a "
                "latent: too few to choose most rules. Make the pack again with this version: scope features"
            )
        with progress_bar("Searching rules", unit="properties") as on_progress:
            labelled = label_by_rules(store, latents, again=self.again, seed=self.seed, on_progress=on_progress)
        _report_rules(console, store, labelled)

    def _writer(self):
        from scope.errors import ConfigError
        from scope.features.labels.ask import Endpoint, Local, key_from

        if self.by == "tokens":
            return None
        if self.by.startswith(("http://", "https://")):
            if not self.model:
                raise ConfigError("--model is missing: the name of the model at that address, e.g. --model gpt-4o-mini.")
            return Endpoint(self.by, self.model, key_from(self.key), self.per_minute)
        if self.by.startswith("transformers:"):
            return self._transformers(self.by.removeprefix("transformers:"))
        return Local(replace(self, model=self.by).load_model(), f"{self.by}+{self.adapter}" if self.adapter else self.by)

    def _transformers(self, name: str):
        from scope.device import find_device, find_dtype
        from scope.errors import ConfigError
        from scope.features.labels.ask import Transformers

        if self.adapter:
            raise ConfigError("--adapter is applied to models that scope computes. Give --with MODEL without transformers:.")
        device = find_device(self.device)
        return Transformers(name, device, find_dtype(self.dtype, device), self.revision)


def _report_rules(console, store, labelled: list[dict]) -> None:
    from rich.table import Table

    from scope.escape import visible_token

    if not labelled:
        console.print("Nothing is left to label; --again makes labels anew.")
        return
    shown = Table("latent", "rule", "F1", "single token", "shuffled", box=None)
    for one in sorted(labelled, key=lambda one: -one["score"])[:12]:
        numbers = [f"{one[name]:.2f}" for name in ("score", "single_token", "null")]
        shown.add_row(str(one["latent"]), visible_token(one["text"]), *numbers)
    console.print(shown)
    middle = {name: sorted(one[name] for one in labelled)[len(labelled) // 2] for name in ("score", "single_token", "null")}
    named = sum(one["named"] for one in labelled)
    console.print(
        f"{len(labelled):,} latents, {named:,} of them with a rule, the others with their strongest contexts. Median F1 on "
        f"text that did not choose the rule {middle['score']:.3f}; of the best single token {middle['single_token']:.3f}; of "
        f"rules for shuffled activations {middle['null']:.3f}."
    )
    console.print(f"They are kept in {store.notes.file}; scope app {store.folder} shows them.")


def _foremost(store) -> str:
    scored = bool(store.table["out_score"].notna().any())
    return f"{'out_score' if scored else 'count'}:{_FOREMOST}"


def _plan(console, store, writer, command: Command, chosen: int, todo: int) -> None:
    from scope.cli.progress import print_note

    who = writer.name if writer else "token statistics"
    known = f", {chosen - todo:,} have one already or never fired" if chosen > todo else ""
    requests = todo * (3 if command.test else 1) if writer else 0
    limit = f", at most {command.max:,}" if command.max is not None and requests else ""
    console.print(f"{todo:,} latents to be labelled by {who}{known}; {requests:,} requests{limit}.")
    if hasattr(writer, "host"):
        console.print(f"Examples of the pack's text are sent to {writer.host}.")
    if command.test and store.controls is None:
        print_note(
            "this pack keeps no control windows, so labels cannot be tested and stay without a score. "
            "Make the pack again with this version: scope features"
        )


def _means(labels) -> dict[str, float]:
    """Means over the labels that were tested in full."""
    tested = [m for m in labels if m.score is not None and m.null is not None]
    if not tested:
        return {}
    return {"score": sum(m.score for m in tested) / len(tested), "null": sum(m.null for m in tested) / len(tested)}


def _report(console, store, labels, todo: int) -> None:
    from collections import Counter

    from rich.table import Table

    from scope.cli.progress import print_note
    from scope.escape import visible_token

    if not labels:
        console.print("Nothing was labelled." if todo else "Nothing is left to label; --again makes labels anew.")
        return
    without = [m for m in labels if not m.text]
    labels = [m for m in labels if m.text]
    if without:
        reasons = "; ".join(f"{n:,} times {why}" for why, n in Counter(m.why for m in without).most_common(3))
        print_note(f"{len(without):,} latents got no label: {reasons}. Nothing is saved for them.")
    if not labels:
        return
    shown = Table("latent", "label", "score", "another's label", "token rule", box=None)
    ranked = sorted(labels, key=lambda m: -1 if m.score is None else -m.score)
    for m in ranked[:12]:
        numbers = ["–" if v is None else f"{v:.2f}" for v in (m.score, m.null, m.tokens)]
        shown.add_row(str(m.latent), visible_token(m.text), *numbers)
    console.print(shown)
    tested, means = [m for m in labels if m.score is not None and m.null is not None], _means(labels)
    if tested:
        tokens = [m.tokens for m in tested if m.tokens is not None]
        console.print(
            f"{len(labels):,} labels, {len(tested):,} tested: balanced accuracy {means['score']:.3f} on average; another "
            f"latent's label on the same windows {means['null']:.3f}; token statistics as a rule "
            f"{sum(tokens) / len(tokens):.3f}; guessing 0.5."
        )
    else:
        console.print(f"{len(labels):,} labels, none of them tested.")
    if len(labels) < todo:
        console.print(f"{todo - len(labels):,} are left; the same command goes on with them.")
    console.print(f"They are kept in {store.notes.file}; scope app {store.folder} shows them.")
