"""Side effects of an edit: loss on texts, tasks of lm-evaluation-harness and refusals, beside a random direction."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.errors import ConfigError, EditError
from scope.result import Result


@dataclass(frozen=True, kw_only=True)
class SideEffectSettings:
    """What is measured of an edit beside its texts. Each field is also a flag of `scope steer`."""

    evaluate: bool = False
    """Measure what the edit breaks: loss, perplexity and KL on ordinary texts, beside random directions of the same size."""

    corpus: str = "bundled"
    """Texts for --evaluate: bundled, a file, a folder, a hub data set, or docs:PACKAGE."""

    tokens: int = 8192
    """Tokens of these texts to read, each text up to --context."""

    context: int = 128
    """Tokens of a text that are read at most."""

    draws: int = 3
    """Random directions for --evaluate; tasks and refusals are compared with the first."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness to run plain, steered and with a random direction, such as arc_easy,hellaswag."""

    include_path: Path | None = None
    """Folder with tasks of your own (YAML), for --tasks."""

    limit: int | None = None
    """Samples of each task at most. None: all."""

    shots: int | None = None
    """Few-shot examples for --tasks. None: what the task says."""

    refusals: tuple[Path, ...] = ()
    """Prompts to answer, for refusals and over-refusals: a .jsonl file of {"prompt": ..., "kind": "harmful" or "harmless"}, or
    two, of harmful and of harmless prompts. With --moderate POLICY a moderator judges the answers too."""

    def __post_init__(self):
        if self.tokens < 2 or self.context < 2 or self.draws < 1:
            raise ConfigError("tokens and context must be at least 2, and draws at least 1.")
        if self.limit is not None and self.limit < 2:
            raise ConfigError(f"limit is {self.limit}; an interval needs two samples at least.")

    def check(self) -> None:
        """Refuse what cannot be measured, before a model is loaded.

        Raises:
            ConfigError: the harness is missing. ModerationError: prompts that cannot be read.
        """
        if self.tasks:
            from scope.steering.harness.language_model import require_harness

            require_harness()
        if self.refusals:
            from scope.moderation.refusals import read_labelled_prompts

            read_labelled_prompts(self.refusals)

    @property
    def any(self) -> bool:
        return self.evaluate or bool(self.tasks) or bool(self.refusals)


@dataclass(frozen=True, kw_only=True, repr=False)
class SideEffects(Result):
    """A steering run, and what was measured of its edit beside it; None for what was not asked for."""

    run: Any
    """The `SteeringRun`."""
    cost: Any = None
    tasks: Any = None
    refusals: Any = None
    text: str = ""
    """Which texts the cost is about."""

    bars = ("name", "value")

    def to_frame(self):
        """A row for each measure and condition, as a pandas table."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        if self.cost:
            for row in self.cost.to_frame().to_dict("records"):
                rows.append({"name": f"loss, {row['condition']}", "value": row["loss"], "low": row["low"], "high": row["high"]})
        if self.tasks:
            for s in self.tasks.scores:
                rows += [{"name": f"{s.task} {s.metric}, {arm}", "value": value} for arm, value in s.values.items()]
        if self.refusals:
            for r in self.refusals.rates:
                rows.append({"name": f"{r.what}, {r.condition}", "value": r.k / r.n, "low": r.low, "high": r.high})
        return pd.DataFrame(rows)

    def lines(self) -> list[str]:
        """Everything that was measured, as text."""
        parts = [[f"Texts: {self.text}", *self.cost.lines()] if self.cost else []]
        parts += [one.lines() if one else [] for one in (self.tasks, self.refusals)]
        return [line for part in parts for line in part]

    def to_json(self, file: str | Path | None = None) -> str:
        """The run as it saves itself, so that it can be replayed, and beside it what was measured."""
        from scope.steering.compare.cost import finite

        found: dict[str, Any] = {"text": self.text} if self.cost else {}
        found |= {"cost": self.cost.to_json()} if self.cost else {}
        found |= {name: json.loads(one.to_json()) for name in ("tasks", "refusals") if (one := getattr(self, name))}
        whole = {**json.loads(self.run.to_json()), "side_effects": finite(found)}
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
        if file is not None:
            from scope.whole_files import write_whole

            write_whole(Path(file), text)
        return text

    def measured(self) -> dict[str, Any]:
        """For the card of an exported intervention."""
        return {"What it breaks": self.lines()}

    def __str__(self) -> str:
        return "\n".join([str(self.run), "", *self.lines()])

    __repr__ = __str__


def side_effects(
    run: Any,
    model: Any,
    sae: Any,
    settings: SideEffectSettings,
    *,
    chat: bool = False,
    judge: tuple[Any, Any] | None = None,
    on_progress: Callable[[str], Any] | None = None,
) -> SideEffects:
    """Measure what the edit of a run breaks. `judge` is a moderator and its policy; `on_progress(title)` gives the
    `on_progress` of one measurement.

    Raises:
        EditError: an edit at the last token of a prompt alone, or at a picture, measured on whole texts.
        ConfigError: the harness is missing, or a task cannot be run. ModerationError: prompts that cannot be read.
    """
    from scope.models.face import VisionModel
    from scope.steering.apply.editing import Editing
    from scope.steering.apply.resolve import at_each_layer, dictionaries, resolve
    from scope.steering.compare.cost import cost, counts_as

    if isinstance(model, VisionModel) or model.provenance.get("picture_sha256"):
        raise EditError(
            f"A {model.cfg.family_name} writes about pictures, and side effects are measured on text.\n"
            "  Measure the edit on a model of text: leave --evaluate, --tasks and --refusals out, or give another --model."
        )
    watch = on_progress or (lambda title: None)
    edits, saes = at_each_layer(model, run.edits), dictionaries(sae)
    kinds = {edit.positions.kind for edit in edits}
    if settings.evaluate and kinds <= {"last_prompt", "image"}:
        raise EditError(
            f"The edit acts at {' and '.join(kinds)} alone, which ordinary texts do not have: their loss says nothing of it.\n"
            "  Measure it where there are prompts: --tasks or --refusals."
        )
    resolved = [resolve(edit, saes, run.strength_units) for edit in edits]
    measured: dict[str, Any] = {}
    if settings.evaluate:
        texts, measured["text"] = ordinary_texts(model, settings)
        how = {"strength_units": run.strength_units, "control_seed": run.control_seed, "draws": settings.draws}
        context = min(settings.context, model.cfg.n_ctx)
        measured["cost"] = cost(model, sae, run.edits, texts, **how, context=context, on_progress=watch("Reading texts"))

    def conditions() -> dict[str, list]:
        edited = {"steered": None, "random": run.control_seed}
        return {"plain": []} | {
            name: Editing(model, saes, resolved, control=control).hooks() for name, control in edited.items()
        }

    if settings.tasks:
        from scope.steering.harness.tasks import compare_on_tasks

        how = {"include_path": settings.include_path, "limit": settings.limit, "shots": settings.shots, "chat": chat}
        how |= {"counts_as": counts_as(edits), "on_progress": watch("Tasks")}
        measured["tasks"] = compare_on_tasks(model, conditions(), settings.tasks, **how)
    if settings.refusals:
        from scope.moderation.refusals import compare_refusals, read_labelled_prompts

        moderator, policy = judge or (None, None)
        how = {"chat": chat, "max_new_tokens": run.sampling.max_new_tokens, "on_progress": watch("Answering")}
        prompts = read_labelled_prompts(settings.refusals)
        measured["refusals"] = compare_refusals(model, conditions(), prompts, moderator=moderator, policy=policy, **how)
    return SideEffects(run=run, **measured)


def ordinary_texts(model: Any, settings: SideEffectSettings) -> tuple[list[str], str]:
    """Texts of a corpus with about as many tokens as are asked for, and what they are.

    Raises:
        EditError: fewer than two texts. CorpusError: no such corpus.
    """
    from scope.activations.corpus.document import clean
    from scope.activations.corpus.sources import open_corpus

    corpus, texts, read = open_corpus(settings.corpus), [], 0
    context = min(settings.context, model.cfg.n_ctx)
    for document in corpus.documents(0):
        text = clean(document.text[: 16 * context])
        n = min(context, len(model.words.encode(text))) - 1 if text.strip() else 0
        if n < 1:
            continue
        texts.append(text)
        read += n
        if read >= settings.tokens:
            break
    if len(texts) < 2:
        raise EditError(f"{settings.corpus} holds fewer than two texts, and intervals are over texts. Give another --corpus.")
    name = " ".join(str(corpus.identity[key]) for key in ("kind", "name") if corpus.identity.get(key))
    return texts, f"{len(texts)} of {name or settings.corpus}, the first {context} tokens of each"
