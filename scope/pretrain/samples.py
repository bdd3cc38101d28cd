"""Text that a model writes by itself, as a corpus that may be shipped with it: drawn from <bos>, seeded, packed as JSONL."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path

from scope.models.face import LanguageModel
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.whole_files import file_aside

SAMPLING = SamplingConfig(temperature=0.85, top_p=None, repetition_penalty=1.0)
"""Near the model's own distribution, and without a penalty, which code and verse would not survive."""

_FILES = 4  # read in turn with other sources, so this many documents of it come for one of each
_ROWS = 64  # texts written together
_SHORTEST = 200  # characters; shorter texts are dropped


def write_samples(
    model: LanguageModel,
    out: Path,
    characters: int,
    seed: int = 0,
    on_progress: Callable[[int, int, dict], None] | None = None,
) -> list[Path]:
    """Write about so many characters to OUT/samples-0.jsonl.xz and on, a line a text: {"name", "text"}.

    The same model, seed and machine write the same files.
    """
    texts: list[str] = []
    written, batch = 0, 0
    while written < characters:
        sampling = SamplingConfig(**vars(SAMPLING) | {"seed": seed + 1000 * batch, "max_new_tokens": model.cfg.n_ctx})
        made = generate(model, [[model.cfg.bos]] * _ROWS, sampling)
        kept = [g.text.strip("\n") for g in made if len(g.text) >= _SHORTEST]
        texts += kept
        written, batch = written + sum(map(len, kept)), batch + 1
        if on_progress:
            on_progress(min(written, characters), characters, {"texts": len(texts)})
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(_FILES):
        file = out / f"samples-{number}.jsonl.xz"
        with file_aside(file) as aside, lzma.open(aside, "wt", encoding="utf-8", preset=9) as lines:
            for i in range(number, len(texts), _FILES):
                lines.write(json.dumps({"name": f"written-{i}", "text": texts[i]}) + "\n")
        files.append(file)
    return files
