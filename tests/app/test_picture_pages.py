"""The pages of packs of pictures: examples with maps first, previews in the table, and which rows the pack is of."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from scope.app.kit.pictures import data_uri, where_in_words
from scope.app.serve import pack_facts, picture_choice
from streamlit.testing.v1 import AppTest

from scope.features.face import Pack
from scope.models.pictures.read import read_picture
from scope.steering.compare.steer import SteeringRun
from tests.app.conftest import said
from tests.help.picture_labs import make_picture_lab

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.fixture(scope="module", params=["siglip", "paligemma"])
def lab(request, tmp_path_factory):
    return make_picture_lab(tmp_path_factory.mktemp("pictures") / "lab", request.param)


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    return make_picture_lab(tmp_path_factory.mktemp("steered") / "lab", "paligemma", n=24)


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
    store.manifest.dictionary["provenance"] = {"training": {"notes": []}, "recording": {"tokens": 1440}}
    assert "left out no row" in pack_facts.registers(store)
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


def reading_of(at: AppTest):
    (read,) = at.session_state["picture readings"].values()
    return read


def test_a_picture_of_the_pack_reads_as_in_the_pack(open_app, lab):
    store = Pack.open(lab / "pack")
    example = next(e for f in store for e in f.pictures("top", 3) if e.acts.any())
    latent = next(f.id for f in store for e in f.pictures("top", 3) if e is not None and e.context == example.context)
    at = open_app("prompt", packs=[lab / "pack"], context=example.context, f=latent)
    assert not at.exception
    assert not at.error
    read = reading_of(at)
    mine = [(f.id, e.acts) for f in store for e in f.pictures("top", 16) if e.context == example.context]
    here, there = (np.concatenate(x) for x in ([read.heat(f) for f, _ in mine], [acts for _, acts in mine]))
    assert np.corrcoef(here, there)[0, 1] > 0.9  # the pack's copy is small, and perhaps a JPEG
    assert any("copy" in caption.value for caption in at.caption)
    first, *_ = data_of(at, "cards")
    assert first["cards"][0]["notes"][0] == f"#{latent}"
    assert first["cards"][0]["values"] == [f"{v:.3g}" if v else "" for v in read.heat(latent)]
    ranking = at.dataframe[0].value
    assert ranking["surprise"].is_monotonic_decreasing
    maps = data_of(at, "cards")[1]["cards"]
    assert [card["notes"][0] for card in maps] == [f"#{i}" for i in ranking["latent"][: len(maps)]]


def test_an_own_picture_is_read_and_what_is_none_is_refused_in_words(open_app, lab):
    at = open_app("prompt", packs=[lab / "pack"])
    assert data_of(at, "cards")[0]["pick"]
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), (10, 200, 10)).save(buffer, "PNG")
    at.session_state["own picture"] = ("<b>mine.png", buffer.getvalue())
    at.button_group(key="prompt picture source").set_value("own").run()
    assert not at.exception
    assert reading_of(at).picture.size == (90, 60)
    assert data_of(at, "cards")[0]["cards"][0]["alt"].startswith("<b>mine.png")
    for data, words in ((b"<svg onload=alert(1)>", "SVG"), (b"", "empty"), (buffer.getvalue()[:60], "broken")):
        at.session_state["own picture"] = ("evil", data)
        at.run()
        assert any(words in error.value for error in at.error), words
        assert not data_of(at, "cards")


def test_the_words_of_an_answer_are_attributed_to_patches(open_app, paligemma):
    from scope.circuits.picture_attribution import attribute_picture
    from scope.models.load import load_model
    from scope.sae.files import read_sae

    lab = paligemma
    at = open_app("prompt", packs=[lab / "pack"], context=3, ask="caption en")
    read = reading_of(at)
    assert read.answer_pieces
    assert any("The model says" in m.value for m in at.markdown)
    at.session_state["word"] = (read.key, 0)
    at.run()
    assert not at.exception
    assert not at.error
    model, sae = load_model(str(lab / "checkpoint")), read_sae(lab / "dictionary")
    wanted = attribute_picture(model, sae, read.picture, "caption en", read.answer_ids[0])
    drawn = data_of(at, "cards")[-1]["cards"][0]
    assert drawn["values"] == [f"{v:+.3f}" if v else "" for v in wanted.patches]
    assert any(str(wanted.ablation)[:40] in c.value.replace("\\", "") for c in at.caption)
    pairs = next(frame.value for frame in at.dataframe if "where" in frame.value and "activation" in frame.value)
    assert pairs["effect"].tolist() == pytest.approx(wanted.pairs(40)["effect"].tolist())
    at.text_input(key="ask").set_value("two\nlines <image>").run()
    assert not at.exception


def test_a_siglip_says_how_well_texts_fit_and_why(open_app, tmp_path):
    from scope.circuits.picture_match import attribute_match
    from scope.models.load import load_model
    from scope.sae.files import read_sae

    lab = make_picture_lab(tmp_path / "lab", "siglip", n=24)
    at = open_app("prompt", packs=[lab / "pack"], context=3)
    at.text_area(key="match texts").set_value("a red circle\n<b>a blue square\na red circle").run()
    assert not at.exception
    model, sae, read = load_model(str(lab / "checkpoint")), read_sae(lab / "dictionary"), reading_of(at)
    texts = ["a red circle", "<b>a blue square"]
    logits = model(model.to_tokens(texts), pixel_values=model.to_pixels([read.picture]))[0]
    shown = next(frame.value for frame in at.dataframe if "probability" in frame.value)
    assert shown["text"].tolist() == texts
    assert shown["probability"].tolist() == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)
    at.selectbox(key="match why").select("a red circle").run()
    assert not at.exception
    assert not at.error
    wanted = attribute_match(model, sae, read.picture, "a red circle")
    drawn = data_of(at, "cards")[-1]["cards"][0]
    assert drawn["values"] == [f"{v:+.3f}" if v else "" for v in wanted.patches]


def test_what_is_said_of_a_picture_is_steered_at_its_patches_and_the_run_opens_again(open_app, paligemma):
    at = open_app("steer", packs=[paligemma / "pack"], f=3, context=3)
    assert not at.exception
    (picture,) = data_of(at, "cards")
    assert at.text_area(key="steer prompt").value == "caption en"
    where = at.selectbox(key="steer row 1 where")
    assert {"Patches of the picture", "Text, not the picture"} <= set(where.options)
    where.select("image")
    at.number_input(key="steer tokens").set_value(3)
    next(b for b in at.button if b.label == "Generate").click()
    at.run()
    assert not at.exception
    assert not at.error
    (kept,) = (paligemma / "pack" / "steering").glob("*.json")
    run = SteeringRun.from_json(kept)
    assert [c.name for c in run.conditions] == ["plain", "steered", "random"]
    assert run.edits[0].positions.kind == "image"
    store = Pack.open(paligemma / "pack")
    file = store.pictures.read_file(int(store.pictures.of_context[3]))
    assert run.model["picture_sha256"] == picture_choice.sha256_of(read_picture(file))
    again = open_app("steer", packs=[paligemma / "pack"], run=kept.stem)
    assert data_of(again, "cards")[0]["cards"][0]["plain"] == picture["cards"][0]["plain"]
    next(b for b in again.button if b.label == "Replay").click()
    again.run()
    assert not again.exception
    assert any("are the same" in box.value for box in again.success)


def test_without_a_picture_nothing_is_generated_and_the_page_says_so(open_app, paligemma):
    at = open_app("steer", packs=[paligemma / "pack"], f=3)
    next(b for b in at.button if b.label == "Generate").click()
    at.run()
    assert any("No picture is chosen" in error.value for error in at.error)


def test_a_tower_is_not_steered_and_the_way_out_is_named(open_app, tmp_path):
    lab = make_picture_lab(tmp_path / "lab", "siglip", n=12)
    at = open_app("steer", packs=[lab / "pack"], f=3)
    assert not at.exception
    assert "the tower that sees" in said(at)
    assert "PaliGemma" in said(at)


def test_latents_of_a_tower_offer_no_steering(open_app, lab):
    steers = pack_facts.steers(Pack.open(lab / "pack"))
    at = open_app("feature", packs=[lab / "pack"], f=0)
    assert next(b for b in at.button if b.label == "Steer").disabled == (not steers)


def test_latents_are_compared_by_their_pictures(open_app, lab):
    at = open_app("features", packs=[lab / "pack"], view="Compare", ids="1,2")
    assert not at.exception
    assert len(data_of(at, "cards")) == 2
    assert not data_of(at, "rows")
