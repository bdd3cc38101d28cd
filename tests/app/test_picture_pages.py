"""The pages of packs of pictures: examples with maps first, previews in the table, and which rows the pack is of."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from scope.app.kit.pictures import data_uri, where_in_words
from scope.app.serve import pack_facts
from streamlit.testing.v1 import AppTest

from scope.features.face import Pack
from scope.models.pictures.read import read_picture
from tests.help.picture_labs import make_picture_lab

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.fixture(scope="module", params=["siglip", "paligemma"])
def lab(request, tmp_path_factory):
    return make_picture_lab(tmp_path_factory.mktemp("pictures") / "lab", request.param)


def data_of(at: AppTest, name: str) -> list[dict]:
    found = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    return [data for data in found if name in data]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_latents_examples_are_pictures_with_maps_and_stand_first(open_app, lab):
    store = Pack.open(lab / "pack")
    feature = next(f for f in store if len(f.pictures()) > 3)
    at = open_app("feature", packs=[lab / "pack"], f=feature.id)
    assert not at.exception
    assert at.header[0].value == "Examples"
    (grid,) = data_of(at, "cards")
    expected = {(e.context, e.offset): e for e in feature.pictures("top", 100)}
    wanted = [expected[e.context, e.offset] for e in feature.examples("top", 12)]
    for card, example in zip(grid["cards"], wanted, strict=True):
        assert card["value"] == f"{example.value:.3g}"
        assert card["values"] == [f"{v:.3g}" if v else "" for v in example.acts]
        assert card["peak"] == example.peak
        assert card["size"] == list(example.size)
        assert example.document in card["notes"]
        assert decoded(card["drawn"]).size == example.image().size
        assert not decoded(card["drawn"]).getexif()
        if example.peak is not None:
            row, column = example.place
            assert f"fires most at row {row}, column {column}" in card["alt"]


def test_rows_of_text_are_shown_as_text_without_the_rows_of_the_picture(open_app, lab):
    store = Pack.open(lab / "pack")
    n = store.manifest.pictures.n_patches
    feature = next((f for f in store if any(e.offset >= n for e in f.examples("top", 12))), None)
    assert (feature is None) == (pack_facts.rows_noun(store) == "patches")
    if feature is None:
        return
    at = open_app("feature", packs=[lab / "pack"], f=feature.id)
    (strips,) = data_of(at, "rows")
    texts = [example for example in feature.examples("top", 12) if example.offset >= n]
    assert [row["value"] for row in strips["rows"]] == [f"{e.value:.3g}" for e in texts]
    assert not any("<image>" in cell[0] for row in strips["rows"] for cell in row["cells"])


@pytest.mark.parametrize("group", ["bands", "random", "near"])
def test_other_samples_are_drawn_too(open_app, lab, group):
    feature = next(f for f in Pack.open(lab / "pack") if group in f.groups and f.pictures(group, 1))
    at = open_app("feature", packs=[lab / "pack"], f=feature.id)
    at.button_group(key="group").set_value(group).run()
    assert not at.exception
    (grid,) = data_of(at, "cards")
    assert 0 < len(grid["cards"]) <= 12
    assert group != "near" or all(card["value"] == "silent" for card in grid["cards"])


def test_the_table_has_a_preview_of_each_latent_and_sorts_as_before(open_app, lab):
    store = Pack.open(lab / "pack")
    at = open_app("features", packs=[lab / "pack"], sort="max")
    assert not at.exception
    rows = at.dataframe[0].value
    assert rows["max"].is_monotonic_decreasing
    for latent, uri in zip(rows["id"], rows["top picture"], strict=True):
        assert max(decoded(uri).size) == 72
        assert store[int(latent)].pictures()
    assert ("top token" in rows) == (pack_facts.rows_noun(store) == "rows")


def test_the_overview_says_which_rows_the_pack_is_of(open_app, lab):
    store = Pack.open(lab / "pack")
    at = open_app(packs=[lab / "pack"])
    assert not at.exception
    grid, roles = store.manifest.pictures, store.manifest.roles
    words = f"{roles['image']:,} patches of 40 pictures ({grid.grid} × {grid.grid} each)"
    assert any(words in caption.value.replace("\\", "") for caption in at.caption)
    assert ("rows of text: 120 prompt" in pack_facts.rows_in_words(store)) == (len(roles) > 1)


def test_a_pooled_site_shows_whole_pictures(open_app, tmp_path):
    lab = make_picture_lab(tmp_path / "lab", "siglip", "vision.hook_pooled", n=24)
    store = Pack.open(lab / "pack")
    assert pack_facts.rows_in_words(store) == "24 pictures, one pooled row for each"
    feature = next(f for f in store if f.pictures())
    at = open_app("feature", packs=[lab / "pack"], f=feature.id)
    assert not at.exception
    card = data_of(at, "cards")[0]["cards"][0]
    assert card["notes"][0] == "the whole picture"
    assert card["drawn"] == card["plain"]


def test_hostile_names_and_captions_stay_text(open_app, lab):
    at = open_app("feature", packs=[lab / "pack"], f=0)
    read = [e.value for e in (*at.markdown, *at.caption, *at.title, *at.header)]
    assert not any("<b>p" in text or "<img" in text for text in read)
    (grid,) = data_of(at, "cards")
    assert all(card["drawn"].startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for card in grid["cards"])


def test_registers_that_training_left_out_are_counted(lab):
    store = Pack.open(lab / "pack")
    assert pack_facts.registers(store) == ""
    store.manifest.dictionary["provenance"] = {"training": {"notes": []}}
    assert "none was left out" in pack_facts.registers(store)
    note = "12 of 1,440 rows are outliers by the recording's rule (norm above 10 x the median): not trained on"
    store.manifest.dictionary["provenance"]["training"]["notes"].append(note)
    assert pack_facts.registers(store) == f"Registers: {note}"


def test_a_map_is_told_in_words():
    assert where_in_words(np.array([0, 0, 0, 2.0, 0, 0.5]), 3) == (
        "fires most at row 1, column 0 (2), then at row 1, column 2 (0.5); on 2 of 6 patches"
    )
    assert where_in_words(np.zeros(4), 2) == "it fires nowhere in the picture"


def test_a_picture_in_the_page_is_encoded_anew_from_pixels():
    exif = Image.Exif()
    exif[0x010E] = "<script>"
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), (200, 0, 0)).save(buffer, "JPEG", exif=exif)
    uri = data_uri(read_picture(buffer.getvalue()))
    assert b"script" not in base64.b64decode(uri.partition(",")[2])
    assert decoded(uri).size == (300, 200)
