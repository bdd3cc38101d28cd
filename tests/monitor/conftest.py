"""A labelled task that a tiny random model can tell: sentences about a river or about the moon."""

import json
import random

import pytest

from scope.models.load import load_model
from tests.conftest import random_gemma
from tests.help.labs import save_checkpoint
from tests.steering.conftest import SITE, random_sae

_WHO = "the dog|a cat|my sister|the old king|one small boat|an angry crowd|the teacher".split("|")
_DOES = "runs to|looks at|returns to|sails over|sings about|counts|asks for".split("|")


def rows(n: int = 160, seed: int = 0) -> list[dict]:
    """Different sentences, half of them about a river; each group is the sentence's first subject."""
    rng, found = random.Random(seed), {}
    while len(found) < n:
        who, river = rng.choice(_WHO), len(found) % 2 == 0
        others = " and ".join(f"{rng.choice(_WHO)} {rng.choice(_DOES)} the red house" for _ in range(rng.randint(1, 3)))
        found[f"{who} {rng.choice(_DOES)} {'the river' if river else 'the moon'}, {others}."] = (river, who)
    return [{"text": text, "label": river, "group": who} for text, (river, who) in found.items()]


def write(file, records) -> None:
    file.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory, tiny_config, toy_tokenizer):
    return save_checkpoint(random_gemma(tiny_config, toy_tokenizer), tmp_path_factory.mktemp("monitor") / "checkpoint")


@pytest.fixture(scope="package")
def model(checkpoint):
    return load_model(str(checkpoint))


@pytest.fixture(scope="package")
def sae_folder(tmp_path_factory, model):
    import scope

    sae = random_sae(model.sites()[SITE], 48, SITE)
    sae.provenance = {"model": dict(model.provenance), "site": SITE}
    folder = tmp_path_factory.mktemp("sae") / "dictionary"
    scope.save_sae(sae, folder)
    return folder


@pytest.fixture(scope="package")
def folder(tmp_path_factory, checkpoint):
    """The folder of a probe for sentences about a river."""
    import scope

    place = tmp_path_factory.mktemp("fitted")
    write(place / "labelled.jsonl", rows())
    scope.fit_monitor(place / "labelled.jsonl", probe=True, model=str(checkpoint), site=SITE, nulls=2, out=place / "monitor")
    return place / "monitor"
