"""Damaged and forged files of saved runs and sweeps: refused, or used without a traceback. Seeded."""

import ast
import copy
import json
import random
from pathlib import Path

import pytest

from scope.errors import EditError, ScopeError
from scope.steering.compare.saved_runs import read_saved
from scope.steering.compare.steer import SteeringRun
from scope.steering.export.page import as_page
from scope.steering.export.script import as_notebook, as_python

SAVED = sorted((Path(__file__).parents[1] / "data" / "version_0_1_0" / "pack.steering").glob("*.json"))
VALUES = [
    None,
    True,
    -1,
    2**70,
    10**400,
    0.5,
    "",
    "\x00",
    "\ud800",
    "]);boom()#",
    [],
    [[1]],
    {"a": 1},
    float("nan"),
    "random:" + "9" * 5000,
]
MUTATIONS = 60


def places(value, at=()):
    """Paths of all parts of a JSON value, of long lists the first few."""
    for key in value if isinstance(value, dict) else range(min(len(value), 4)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def forged(raw, rng: random.Random) -> bytes:
    """The JSON with a part of it left out, doubled, renamed or replaced."""
    raw = copy.deepcopy(raw)
    *way, last = rng.choice(list(places(raw)))
    around = raw
    for key in way:
        around = around[key]
    match rng.randrange(5):
        case 0:
            del around[last]
        case 1 if isinstance(around, list):
            around.append(copy.deepcopy(around[last]))
        case 1 if isinstance(around, dict):
            around["other"] = around.pop(last)
        case _:
            around[last] = rng.choice(VALUES)
    return json.dumps(raw).encode(errors="surrogatepass")


def damaged(text: bytes, rng: random.Random) -> bytes:
    """The file with a bit flipped, its end lost, or brackets put in."""
    at = rng.randrange(len(text))
    match rng.randrange(3):
        case 0:
            return text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :]
        case 1:
            return text[:at]
        case _:
            return text[:at] + b"[" * 100_000 + text[at:]


def test_a_damaged_or_forged_run_is_refused_or_used_as_any_other(tmp_path):
    rng, used, file = random.Random(13), 0, tmp_path / "run.json"
    texts = [saved.read_bytes() for saved in SAVED]
    raws = [json.loads(text) for text in texts]
    for _ in range(MUTATIONS):
        which = rng.randrange(len(texts))
        file.write_bytes(forged(raws[which], rng) if rng.random() < 0.7 else damaged(texts[which], rng))
        try:
            saved = read_saved(file)
            run = getattr(saved, "runs", [saved])[0]
            ast.parse(as_python(run, ["d"]))
            json.loads(as_notebook(run, ["d"]))
            as_page(saved).encode()
            str(saved), run._repr_html_(), saved.to_json().encode()
        except ScopeError:
            continue
        used += 1
    assert 10 < used < MUTATIONS / 2


@pytest.mark.parametrize(
    ("name", "value"), [("strength", None), ("raw", None), ("strength", ...), ("multiple_of_maximum", ...)]
)
def test_an_edit_with_an_amount_needs_all_that_its_line_prints(name, value):
    raw = next(raw for raw in map(json.loads, (saved.read_bytes() for saved in SAVED)) if "edits" in raw)
    raw["sheet"][0][name] = value
    if value is ...:
        del raw["sheet"][0][name]
    with pytest.raises(EditError, match=name):
        SteeringRun.from_json(json.dumps(raw))
