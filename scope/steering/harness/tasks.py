"""Tasks of lm-evaluation-harness on several conditions of one model, and their differences sample by sample."""

import difflib
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope.errors import ConfigError, ScopeError
from scope.json_result import JsonResult
from scope.models.face import LanguageModel
from scope.progress import OnProgress
from scope.steering.compare.statistics import interval
from scope.steering.harness.language_model import harness_model, require_harness

FEW = 20
"""Samples below which an interval is a rough estimate."""
FEWSHOT_SEED = 1234
"""What the harness's own command draws few-shot examples with."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task, by condition. Differences are means over samples, text by text, with 95 % bootstrap intervals."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    n: int
    values: dict[str, float]
    """Condition -> what the harness reports."""
    differences: dict[str, tuple[float, float, float]]
    """"steered - plain" and the like -> mean, low, high; {} for a metric that is no mean over samples."""


@dataclass(frozen=True, kw_only=True)
class TaskComparison(JsonResult):
    """Scores of the conditions on every task."""

    error = ConfigError
    way_out = "Run the tasks again: scope steer ... --tasks NAME --json FILE"

    scores: tuple[TaskScore, ...]
    limit: int | None
    shots: int | None
    harness: str
    """Version of lm-evaluation-harness."""
    counts_as: str
    """What texts without a context count as, for rules of positions."""

    bars = ("name", "plain", "steered", "random")

    def to_frame(self):
        """A row for each metric, as a pandas table."""
        import pandas as pd

        rows = []
        for s in self.scores:
            row = {"name": f"{s.task} {s.metric}", "task": s.task, "metric": s.metric, "filter": s.filter, "n": s.n, **s.values}
            for name, (mean, low, high) in s.differences.items():
                row |= {name: mean, f"{name}, low": low, f"{name}, high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def lines(self) -> list[str]:
        """A line for each metric with its paired differences."""
        rows = []
        for s in self.scores:
            name = f"{s.task}, {s.metric}" + ("" if s.filter == "none" else f" ({s.filter})")
            better = {True: ", higher is better", False: ", lower is better", None: ""}[s.higher_is_better]
            rows.append(f"{name} on {s.n} samples{better}:")
            rows.append("  " + ", ".join(f"{arm} {value:.4g}" for arm, value in s.values.items()))
            rows += [f"  {pair} {d:+.4g} [{low:+.4g}, {high:+.4g}]" for pair, (d, low, high) in s.differences.items()]
        few = min((s.n for s in self.scores), default=0)
        rough = [f"  note: intervals over {few} samples are rough estimates"] if few < FEW else []
        return [*rows, f"  {COUNTING[self.counts_as]}", *rough]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    __repr__ = __str__


_REQUEST = "a request's context counts as the prompt, its continuation as generated; texts without a context count as "
COUNTING = {"prompt": f"{_REQUEST}a prompt", "generated": f"{_REQUEST}generated"}


def compare_on_tasks(
    model: LanguageModel,
    conditions: Mapping[str, Sequence],
    tasks: Sequence[str],
    *,
    include_path: Path | str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
    counts_as: str = "prompt",
    on_progress: OnProgress | None = None,
) -> TaskComparison:
    """Run every task once for each condition (a name and its hooks; "plain" without any), on the same samples.

    `include_path` is a folder with tasks of one's own (YAML). Tasks of the harness fetch their data sets from the hub.

    Raises:
        ConfigError: the harness is not installed, an unknown task, or one that cannot be run here.
    """
    require_harness()
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"There is no folder {include_path} with tasks. Give one that holds their YAML files.")
    manager = None
    if include_path is not None:  # the harness' own thousands take seconds to list, so they are listed only where needed
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
    if manager is None or not all(name in manager.all_tasks for name in tasks):
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    _refuse_unknown(tasks, manager)
    loaded = _guarded(lambda: manager.load(list(tasks)), tasks)
    for task in loaded["tasks"].values():
        if shots is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    results, done = {}, 0

    def answered(n: int) -> None:
        nonlocal done
        done += n
        if on_progress:
            requests = sum(len(task.instances) * task.config.repeats for task in loaded["tasks"].values())
            on_progress(done, requests * len(conditions), {})

    for name, hooks in conditions.items():
        random.seed(0)
        np.random.seed(FEWSHOT_SEED)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        language_model = harness_model(model, hooks, batch_size=batch_size, texts_count_as=counts_as, on_request=answered)
        how = {"limit": limit, "bootstrap_iters": 0, "log_samples": True, "apply_chat_template": chat}
        results[name] = _guarded(lambda lm=language_model, how=how: evaluate(lm, loaded, **how), tasks)
    scores = tuple(score for task in loaded["tasks"] for score in _scores(task, results))
    version = getattr(lm_eval, "__version__", "")
    return TaskComparison(scores=scores, limit=limit, shots=shots, harness=version, counts_as=counts_as)


def _refuse_unknown(tasks: Sequence[str], manager: Any) -> None:
    known = list(manager.all_tasks)
    for name in tasks:
        if name not in known and "*" not in name:
            near = ", ".join(difflib.get_close_matches(name, known, 4, 0.4))
            raise ConfigError(
                f"lm-evaluation-harness has no task {name!r}.{f' Nearest: {near}.' if near else ''}\n"
                "  All of them: lm_eval ls tasks. Tasks of your own: --include-path FOLDER"
            )


def _guarded(do: Callable[[], Any], tasks: Sequence[str]) -> Any:
    """What `do` returns; whatever the harness and the data sets raise is a refusal that names the tasks.

    Raises:
        ConfigError: a data set that cannot be fetched, a task that cannot be built or run.
    """
    try:
        return do()
    except ScopeError:
        raise
    except Exception as error:  # data sets, hub, YAML and templates have errors of their own
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300]
        raise ConfigError(
            f"The tasks {', '.join(tasks)} could not be run: {type(error).__name__}: {reason}\n"
            "  Without the hub, give tasks whose data lie in files: --include-path FOLDER"
        ) from error


def _scores(task: str, results: Mapping[str, Any]) -> list[TaskScore]:
    """Every metric of a task, from the results of each condition."""
    first = next(iter(results.values()))
    scores = []
    for key, value in first["results"].get(task, {}).items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = {arm: float(result["results"][task][key]) for arm, result in results.items()}
        by_sample = {arm: _by_sample(result["samples"][task], metric, filtered) for arm, result in results.items()}
        n = len({sample["doc_id"] for sample in first["samples"][task]})
        better = first.get("higher_is_better", {}).get(task, {}).get(metric)
        differences = _differences(by_sample, values)
        scores.append(
            TaskScore(
                task=task, metric=metric, filter=filtered, higher_is_better=better, n=n, values=values, differences=differences
            )
        )
    return scores


def _by_sample(samples: Sequence[Mapping[str, Any]], metric: str, filtered: str) -> np.ndarray | None:
    """The metric of each sample in the order of the documents; None where it is no number for each."""
    rows = sorted((s["doc_id"], s[metric]) for s in samples if s.get("filter") == filtered and _is_number(s.get(metric)))
    return np.array([float(value) for _, value in rows]) if rows else None


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number) and math.isfinite(float(value))


def _differences(by_sample: Mapping[str, np.ndarray | None], values: Mapping[str, float]) -> dict[str, Any]:
    """Pairs of conditions with the mean difference and its interval, where the metric is the mean of its samples."""
    plain, found = by_sample.get("plain"), {}
    for arm, name in (("steered", "plain"), ("random", "plain"), ("steered", "random")):
        a, b = by_sample.get(arm), by_sample.get(name)
        if a is None or b is None or len(a) != len(b) or not math.isclose(a.mean(), values[arm], rel_tol=1e-6, abs_tol=1e-9):
            continue
        found[f"{arm} - {name}"] = (float((a - b).mean()), *interval(a - b))
    return found if plain is not None else {}
