"""`scope.ask_datacommons`: a question in, an answer with retrieved numbers out (DataGemma's two ways, RIG and RAG)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from scope.errors import ConfigError
from scope.models.text.sampling_config import SamplingConfig
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelSettings, resolve

OnText = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where numbers come from."""

    service: str = "embedded"
    """Where numbers come from: `embedded` (Gapminder's table on this machine: population, life expectancy and GDP per person of
    142 countries), `public` (Data Commons, needs a network), or the address of either, such as http://127.0.0.1:8080."""

    through: Literal["query", "client"] = "query"
    """How to ask: by the endpoint for questions in plain English, or by the public library datacommons-client."""

    key: str | None = None
    """Key for Data Commons; by default the environment's DC_API_KEY."""

    timeout: float = 20.0
    """Seconds to wait for each answer of the service."""

    def __post_init__(self):
        if not 0 < self.timeout < 1e6:
            raise ConfigError(f"timeout is {self.timeout}; it is a number of seconds above 0.")


@dataclass(frozen=True, kw_only=True)
class AskDataCommons(ModelSettings):
    """A question and how to answer it. Each field is also a flag of `scope datacommons ask`."""

    question: str
    """What to ask, as in "What was the population of Chad in 1952?"."""

    model: str = "bundled+rig"
    """Model that asks Data Commons: bundled+rig, google/datagemma-rig-27b-it, google/datagemma-rag-27b-it, or a folder."""

    form: Literal["rig", "rag"] = "rig"
    """rig: the model answers, with calls in its text that are replaced by what the service says. rag: the model writes
    questions, the service gives tables, and --answer-model answers from them."""

    answer_model: str | None = None
    """rag: the model that answers from the tables; it needs room for a long prompt. Without one, the tables are shown."""

    max_new_tokens: int = 256
    """Tokens that a model writes at most; the end of its context may come first."""

    temperature: float = 0.0
    """0 takes the likeliest token; 1 draws from the model's own distribution."""

    seed: int = 0
    """Random seed for sampling."""

    source: Service = field(default_factory=Service)

    def __post_init__(self):
        if not self.question.strip():
            raise ConfigError('There is no question. Give one, as in "What was the population of Chad in 1952?".')
        if self.answer_model is not None and self.form == "rig":
            raise ConfigError("--answer-model belongs to --form rag; with rig the model itself answers.")

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed, repetition_penalty=1.0
        )


def ask_datacommons(
    config: AskDataCommons | str | None = None, *, on_text: OnText | None = None, on_note: OnNote = silent, **settings: Any
) -> Any:
    """An `AnnotatedAnswer` (rig) or a `TablesAnswer` (rag); printed, either says what was retrieved and what was not.

    With rig, `on_text` is called with the annotated text as it grows.

    Raises:
        ConfigError: settings that cannot be; no key for the public interface.
        RetrievalError: the service cannot be used at all (`through="client"`); failures of single questions are in the answer.
    """
    from scope.retrieval.rag import QUESTIONS, SHORT_QUESTIONS, answer_from_tables

    config = resolve(AskDataCommons, config, settings, first="question")
    with open_service(config.source) as service:
        model = config.load_model()
        if config.form == "rig":
            return _annotated_answer(model, config, service, on_text)
        answering = None
        if config.answer_model:
            answering = config.of_another(config.answer_model).load_model()
        prompt, length = QUESTIONS, len(model.words.encode(QUESTIONS.format(query=config.question)))
        if length + 16 > model.cfg.n_ctx:
            prompt = SHORT_QUESTIONS
            on_note(
                f"The full prompt for questions has {length} tokens, of this model's {model.cfg.n_ctx}, so it gets a short one."
            )
        result = answer_from_tables(
            config.question, _asking(model, config), _asking(answering, config) if answering else None, service, prompt
        )
    if answering is None:
        on_note("No --answer-model is given, so the tables are shown and no answer is written.")
    return result


@contextmanager
def open_service(config: Service) -> Iterator[Any]:
    """The service that numbers come from; the embedded one runs as long as the block.

    Raises:
        ConfigError: an address that is none, or no key for the public interface.
        RetrievalError: the service cannot be used (`through="client"` looks at once).
    """
    from scope.retrieval.server import API, embedded_service
    from scope.retrieval.service import PUBLIC_QUERIES, ClientService, QueryService

    key = config.key or os.environ.get("DC_API_KEY") or None
    if config.service == "embedded":
        with embedded_service() as url:
            client = config.through == "client"
            yield ClientService(url + API, None, config.timeout) if client else QueryService(url, None, config.timeout)
    elif config.through == "client":
        public = config.service == "public"
        root = None if public else config.service.rstrip("/")
        yield ClientService(root if root is None or "/v2" in root else root + API, key, config.timeout)
    else:
        yield QueryService(PUBLIC_QUERIES if config.service == "public" else config.service, key, config.timeout)


def _annotated_answer(model: Any, config: AskDataCommons, service: Any, on_text: OnText | None) -> Any:
    from scope.models.text.generate import generate
    from scope.retrieval.annotate import Annotator

    annotator = Annotator(service)

    def on_piece(row: int, piece: str) -> None:
        text = annotator.feed(piece)
        if text and on_text is not None:
            on_text(text)

    generate(model, config.question, config.sampling, on_text=on_piece)
    rest = annotator.close()
    if rest and on_text is not None:
        on_text(rest)
    return annotator.answer()


def _asking(model: Any, config: AskDataCommons) -> Callable[[str], str]:
    from scope.models.text.generate import generate

    return lambda prompt: generate(model, prompt, config.sampling)[0].text
