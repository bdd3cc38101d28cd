"""Commands on models that read pictures: what is steered, attributed and compared."""

import csv

import numpy as np
import pytest
from PIL import Image

from scope.cli.main import run
from scope.models.load import load_model
from scope.sae.files import save_sae
from tests.models.vision_twins import save_with_words
from tests.steering.conftest import SITE, random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_text):
    folder = tmp_path_factory.mktemp("pictures")
    save_with_words(folder / "model", toy_text)
    model = load_model(str(folder / "model"))
    sae = random_sae(model.sites()[SITE])
    sae.provenance = {"model": dict(model.provenance)}
    save_sae(sae, folder / "sae")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(folder / "picture.png")
    return folder


def command(capsys, *flags):
    code = run([str(flag) for flag in flags])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_word_is_attributed_to_patches_with_picture_table_and_page(folder, capsys, tmp_path):
    files = {kind: tmp_path / f"found.{kind}" for kind in ("png", "csv", "html")}
    flags = ["--sae", folder / "sae", "--picture", folder / "picture.png", "--prompt", "the dog", "--method", "gradient"]
    written = [x for kind, file in files.items() for x in (f"--{kind}", file)]
    code, out, err = command(capsys, "attribute", *flags, *written)
    assert code == 0, err
    assert "random sets of as many" in out
    with files["csv"].open() as f:
        rows = list(csv.DictReader(f))
    assert {"patch", "latent", "effect", "null"} <= set(rows[0])
    assert Image.open(files["png"]).size
    page = files["html"].read_text()
    assert "weights_sha256" in page
    assert str(folder) not in page


def test_a_picture_stands_before_what_is_steered(folder, capsys):
    flags = ["--sae", folder / "sae", "--latent", "5", "--prompt", "the dog", "--max-new-tokens", "4", "--positions", "image"]
    code, out, err = command(capsys, "steer", *flags, "--picture", folder / "picture.png", "--json", folder / "run.json")
    assert code == 0, err
    assert "9 of" in out
    assert f"--picture {folder / 'picture.png'} --replay" in " ".join(out.split())
    code, _, err = command(capsys, "steer", *flags)
    assert code == 2
    assert "--picture FILE" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--answer", "a cat", "--prompt", "the dog"], "--picture FILE"),
        (["--picture", "nowhere.png", "--prompt", "the dog"], "names no file"),
        (["--picture", "PICTURE"], "prompt is empty"),
        (["--picture", "PICTURE", "--prompt", "the dog", "--method", "direct"], "integrated and gradient"),
        (["--picture", "PICTURE", "--text", "a dog"], "no logit of a picture and a text"),
        (["--prompt", "the dog"], "asked about a picture"),
    ],
)
def test_what_does_not_fit_a_picture_is_refused_in_words(folder, capsys, flags, message):
    flags = [str(folder / "picture.png") if flag == "PICTURE" else flag for flag in flags]
    code, _, err = command(capsys, "attribute", "--sae", folder / "sae", *flags)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
