"""`scope datacommons triggers`: latents that announce a call to Data Commons, and calls forced and held back with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.whole_files import refuse_unwritable
from scope.workflows.datacommons import Service, open_service
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelSettings, resolve, sae_of_lab

FEWEST = 8
"""Questions."""


@dataclass(frozen=True, kw_only=True)
class Triggers(ModelSettings):
    """What to measure. Each field is also a flag of `scope datacommons triggers`."""

    sae: Path
    """SAE of the model: a folder that `scope train` wrote, or a lab (a folder with dictionary/)."""

    model: str = "bundled+rig"
    """Model that asks Data Commons: bundled+rig, google/datagemma-rig-27b-it, or a folder."""

    questions: Path | None = None
    """JSON lines with {"question": ..., "answer": a number, or a word where none is needed}; by default questions about
    Gapminder's table, half of which need a number. Half of them choose the detectors and edits, half score them."""

    n: int = 160
    """How many questions about Gapminder's table, where --questions names no file."""

    ahead: tuple[int, ...] = (1, 2, 3, 4)
    """How many tokens before the call it is to be announced."""

    steered: bool = True
    """Also force and hold back calls with the latents found."""

    max_new_tokens: int = 80
    """Tokens of an answer at most."""

    seed: int = 0
    """Random seed for the questions, the null and the random directions."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the model's."""

    out: Path | None = None
    """Write the result here as JSON; `TriggerResult.load` reads it."""

    csv: Path | None = None
    """Write both tables here, a row per detector and per condition of steering."""

    html: Path | None = None
    """Write a page with both tables here."""

    source: Service = field(default_factory=Service)

    def __post_init__(self):
        if self.n < FEWEST or not self.ahead or min(self.ahead) < 1:
            raise ConfigError(f"n is at least {FEWEST}, and ahead one or several numbers of at least 1.")


def find_triggers(config: Triggers | Path | str | None = None, *, on_note: OnNote = silent, **settings: Any) -> Any:
    """Detectors of calls beside their baselines, and steered calls beside a random direction. Returns a
    `scope.retrieval.trigger_result.TriggerResult`.

    Raises:
        ConfigError: settings that cannot be, or answers with too few calls.
        DictionaryError: the SAE does not fit the model.
    """
    from scope.fit import check_fit
    from scope.models.text.generate import generate
    from scope.models.text.sampling_config import SamplingConfig
    from scope.retrieval.steered_calls import AIMS, steer_calls
    from scope.retrieval.trigger_result import TriggerResult
    from scope.retrieval.triggers import Answer, announcements, before_calls, written_before_calls
    from scope.sae.files import read_sae
    from scope.steering.edits.base import When

    job = resolve(Triggers, config, settings, first="sae")
    for file in filter(None, (job.out, job.csv, job.html)):
        refuse_unwritable(file)
    questions = _read(job.questions) if job.questions else ()
    sae = read_sae(sae_of_lab(job.sae), job.device)
    model = job.load_model()
    check_fit(model, sae, job.any_model, reconstructs=True)
    questions = questions or _drawn(model, job.n, job.seed)
    sampling = SamplingConfig(max_new_tokens=job.max_new_tokens, temperature=0.0, repetition_penalty=1.0)
    answers = []
    for start in range(0, len(questions), 40):
        batch = generate(model, [q.text for q in questions[start : start + 40]], sampling)
        answers += [Answer.of(model, g.prompt_ids, g.new_ids) for g in batch]
        on_note(f"{len(answers)} of {len(questions)} questions answered")
    every = {
        a.k: a for a in announcements(model, sae, answers, sorted({1, *job.ahead} if job.steered else job.ahead), job.seed)
    }
    chosen = [every[k] for k in job.ahead]
    steered: list[Any] = []
    notes: list[str] = []
    if job.steered:
        latents = list(dict.fromkeys(i for ranks in zip_longest(*(a.latents for a in chosen)) for i in ranks if i is not None))
        if not latents:
            raise ConfigError(
                f"No latent of {job.sae} fires before a call, so none can force or hold back calls.\n"
                "  Train an SAE on answers with calls (scope datacommons corpus), or give --no-steered."
            )
        with open_service(job.source) as service:
            directions = before_calls(model, _residual_sites(model, sae.site), answers)
            written = written_before_calls(model, sae, answers)
            settings = {"directions": directions, "written": written, "trigger": When(every[1].latent, every[1].threshold)}
            steered = steer_calls(model, sae, latents, questions, service, sampling, job.seed, **settings)
        for aim, needs in AIMS.items():
            if not any(row.aim == aim for row in steered):
                kind = "a number (a question whose answer is a number)" if needs else "no number (one whose answer is a word)"
                notes.append(
                    f"No call was {'held back' if needs else 'forced'}: that needs questions with {kind} in both halves."
                )
    result = TriggerResult(
        announcements=tuple(chosen),
        steered=tuple(steered),
        notes=tuple(notes),
        provenance=_provenance(job, model, sae, questions),
    )
    if job.out:
        result.save(job.out)
    if job.csv:
        result.to_csv(job.csv)
    if job.html:
        result.to_html(job.html)
    return result


def _provenance(job: Triggers, model: Any, sae: Any, questions: Sequence[Any]) -> dict[str, Any]:
    """What a result depends on: models and SAE by their hashes, and every setting."""
    import scope
    from scope.sae.files import parameters_sha256
    from scope.whole_files import file_sha256

    return {
        "model": dict(model.provenance),
        "sae": {"path": str(job.sae), "site": sae.site, "parameters_sha256": parameters_sha256(sae)},
        "questions": len(questions),
        "questions_sha256": file_sha256(job.questions) if job.questions else None,
        "n": job.n,
        "ahead": list(job.ahead),
        "steered": job.steered,
        "max_new_tokens": job.max_new_tokens,
        "seed": job.seed,
        "service": job.source.service,
        "scope": scope.__version__,
    }


def _residual_sites(model: Any, site: str, most: int = 4) -> list[str]:
    """The residual stream after up to `most` layers, evenly spaced to the last, and the SAE's site if it is as wide."""
    after = [name for name in model.sites() if name.endswith("hook_resid_post")]
    chosen = after[:: -max(1, len(after) // most)][:most][::-1]
    return list(dict.fromkeys([*chosen, site] if model.sites()[site] == model.cfg.d_model else chosen))


def _drawn(model: Any, n: int, seed: int) -> Sequence[Any]:
    """Questions about facts that bundled+rig was not shown, and about continents, in pairs, so that either half has both."""
    import numpy as np

    from scope.pretrain.organisms.rig import ASKING, WITHOUT_NUMBER, RigLessons
    from scope.retrieval.steered_calls import Question

    lessons, rng, questions = RigLessons(model.words), np.random.default_rng(seed), []
    for fact in lessons.test_facts(held_out=False, n=n // 2):
        words = {"m": fact.variable.name, "c": fact.country.name, "y": fact.year}
        questions.append(Question(ASKING[int(rng.integers(3))].format(**words), fact.value))
        asking, _ = WITHOUT_NUMBER[int(rng.integers(1, len(WITHOUT_NUMBER)))]
        questions.append(Question(asking.format(**words), lessons.continents[fact.country.dcid]))
    order = np.random.default_rng(seed).permutation(len(questions))
    return [questions[i] for i in order]


def _read(file: Path) -> Sequence[Any]:
    from scope.retrieval.steered_calls import Question
    from scope.typed_json import json_lines, read_bytes, typed

    @dataclass(frozen=True)
    class Row:
        question: str
        answer: float | str

    rows = [typed(row, Row, file, ConfigError) for row in json_lines(read_bytes(file, ConfigError), file, ConfigError)]
    if len(rows) < FEWEST:
        raise ConfigError(
            f"{file} holds {len(rows)} questions; at least {FEWEST} are needed, half of which score the other half."
        )
    return [Question(row.question, row.answer) for row in rows]
