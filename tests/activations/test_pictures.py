"""Corpora of pictures and their recordings: which files and fields are read, and what a recording says of every row."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scope.activations.config import HarvestConfig
from scope.activations.corpus.hub import _with_bytes
from scope.activations.corpus.roles import Role
from scope.activations.errors import CorpusError, CorpusWarning, RecordingError
from scope.activations.harvest.harvest import harvest
from scope.activations.harvest.plan import plan
from scope.activations.harvest.scan import scan
from scope.activations.pictures.fields import PictureFields
from scope.activations.pictures.sources import open_pictures
from scope.activations.read.store import ActivationStore

from scope.errors import ConfigError
from scope.models.load import load_model
from scope.models.pictures.inputs import InputOptions
from tests.activations.toy import contents
from tests.models.vision_twins import save_with_words, siglip

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
COLOURS = ("red", "green", "blue", "white", "black")


def picture(i: int = 0, size=(30, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def file_of(i: int = 0, **options) -> bytes:
    buffer = io.BytesIO()
    picture(i, **options).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for i in range(10):
        name = f"pictures/{'more/' if i > 6 else ''}p{i}.png"
        (tmp_path / name).write_bytes(file_of(i, size=(30 + i, 20)))
        (tmp_path / name).with_suffix(".txt").write_text(f"a {COLOURS[i % 5]} picture\n")
    return tmp_path / "pictures"


def read(spec, **fields):
    return list(open_pictures(str(spec), PictureFields(**fields)).documents())


def test_a_folder_gives_its_pictures_with_the_text_beside_them(folder):
    documents = read(folder)
    assert [d.name for d in documents][:2] == ["more/p7.png", "more/p8.png"]
    assert len(documents) == 10
    assert documents[0].text == "a blue picture"
    before = open_pictures(str(folder)).identity
    (folder / "p0.txt").write_text("another text")
    assert open_pictures(str(folder)).identity != before


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv"])
def test_an_image_folder_has_what_its_metadata_says(folder, form):
    rows = [{"file_name": f"p{i}.png", "question": "which colour?", "answer": COLOURS[i % 5]} for i in (3, 1)]
    lines = [json.dumps(row) for row in rows]
    if form.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / form).write_text("\n".join(lines))
    documents = read(folder)
    assert [(d.name, d.question, d.answer) for d in documents] == [
        ("p3.png", "which colour?", "white"),
        ("p1.png", "which colour?", "green"),
    ]
    assert documents[0].picture == str(folder / "p3.png")


def test_records_hold_paths_bytes_data_urls_or_base64(folder):
    plain = base64.b64encode(file_of(1)).decode()
    values = ["p1.png", plain, f"data:image/png;base64,{plain}", ["p1.png"], {"bytes": None, "path": "p1.png"}, 7, ["a", "b"]]
    (folder / "set.jsonl").write_text("\n".join(json.dumps({"image": v, "prefix": "ask", "suffix": "say"}) for v in values))
    documents = read(folder / "set.jsonl")
    path = str(folder / "p1.png")
    assert [d.picture for d in documents] == [path, file_of(1), file_of(1), path, path, None, None]
    assert {(d.question, d.answer) for d in documents} == {("ask", "say")}
    assert documents[0].crc32 != documents[1].crc32 or documents[0].name != documents[1].name


@pytest.mark.parametrize("stated", [{}, {"picture": "image"}])
def test_a_later_record_without_the_field_of_pictures_is_a_document_without_one(folder, stated):
    rows = [{"image": "p1.png", "text": "a"}, {"text": "b"}, {"image": "p2.png", "text": "c"}]
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [d.picture for d in read(folder / "set.jsonl", **stated)] == [str(folder / "p1.png"), None, str(folder / "p2.png")]


def test_links_that_lead_nowhere_are_named_among_what_is_left_out(folder):
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.warns(CorpusWarning, match="left out: gone.png"):
        assert len(read(folder)) == 10


def test_a_chat_about_a_picture_gives_its_first_question_and_answer(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "chats.json").write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    document = read(tmp_path / "chats.json")[0]
    assert (document.name, document.question, document.answer) == ("a", "What is it?", "A cat.")


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_tables_hold_pictures_as_datasets_stores_them(tmp_path, form):
    import datasets

    data = {"image": [{"bytes": file_of(i), "path": None} for i in range(20)], "caption": ["a", "b"] * 10}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    table = datasets.Dataset.from_dict(data, features=features)
    place = tmp_path / "set"
    if form == "parquet":
        place = place.with_suffix(".parquet")
        table.to_parquet(place)
    else:
        table.save_to_disk(place)
    documents = read(place)
    assert len(documents) == 20
    assert documents[17].picture == file_of(17)
    assert documents[17].text == "b"


def test_what_holds_no_pictures_is_refused_with_what_there_is(folder, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "only words"}\n')
    with pytest.raises(CorpusError, match=r"no field with a picture\. It has: text"):
        read(tmp_path / "texts")
    with pytest.raises(CorpusError, match="text alone"):
        read("bundled")
    (folder / "x.jsonl").write_text('{"image": "p1.png"}\n')
    with pytest.raises(CorpusError, match=r'no field "scan"\. There are: image'):
        read(folder / "x.jsonl", picture="scan")
    (folder / "x.jsonl").write_text('{"notes": "beside the pictures"}\n')
    with pytest.warns(CorpusWarning, match="left out: x.jsonl"):
        assert len(read(folder)) == 10


# Recordings.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    texts = ["a red picture", "a blue picture", "which colour? white", "caption en"] * 40
    processor = save_with_words(place / "paligemma", texts)
    return {
        "siglip": load_model(str(siglip(place / "siglip"))),
        "paligemma": load_model(str(place / "paligemma")),
        "processor": processor,
        "folder": place / "paligemma",
    }


def record(model, folder, out, *sites, options=InputOptions(), tokens=10_000, context=None, batch=4, **config):
    maker = model.inputs_for(sites, options)
    context = maker.context_for(context)
    settings = {"sites": sites, "tokens": tokens, "context": context, "batch_contexts": batch, "dtype": "float32"}
    config = HarvestConfig(**settings | {"shard_rows": 4 * context} | config)
    return harvest(model, maker, open_pictures(str(folder)), config, out, model.provenance)


def test_rows_of_a_tower_are_the_patches_of_the_pictures_in_their_order(models, folder, tmp_path):
    model, site = models["siglip"], "vision.blocks.0.hook_resid_post"
    store = record(model, folder, tmp_path / "r", site)
    assert store.n_rows == 10 * 16
    assert set(store.row_roles) == {Role.IMAGE}
    assert (store.tokens == -1).all()
    for context in (0, 7):
        name = store.document_names[store.documents[context, 0]]
        expected = model.record(model.to_pixels(folder / name), [site])[site][0]
        torch.testing.assert_close(store[site][store.rows_of_context(context)], expected, rtol=1e-5, atol=1e-5)
        facts = store.document_facts[store.documents[context, 0]]
        i = int(name[-5])
        assert (facts["width"], facts["height"], facts["text"]) == (30 + i, 20, f"a {COLOURS[i % 5]} picture")
        small = Image.open(io.BytesIO(store.thumbnail(int(store.documents[context, 0]))))
        assert np.array_equal(small, picture(i, size=(30 + i, 20)))
    row = store.place_of(16 * 7 + 6)
    name = store.document_names[store.documents[7, 6]]
    width = Image.open(folder / name).width
    assert (row.document, row.context, row.patch, row.role) == (name, 7, (1, 2), "image")
    assert row.box == pytest.approx((2 * 7 / 29 * width, 7 / 29 * 20, 3 * 7 / 29 * width, 14 / 29 * 20))
    kinds = store.by_kind(site)
    assert list(kinds) == ["image"]
    assert kinds["image"].rows == 160


def test_pooled_sites_have_one_row_a_picture_and_other_rows_beside_them_are_refused(models, folder, tmp_path):
    model = models["siglip"]
    store = record(model, folder, tmp_path / "r", "vision.hook_pooled")
    name = store.document_names[store.documents[3, 0]]
    pooled = model.record(model.to_pixels(folder / name), ["vision.hook_pooled"])["vision.hook_pooled"][0]
    torch.testing.assert_close(store["vision.hook_pooled"][3:4], pooled, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="rows of different kinds"):
        model.inputs_for(["vision.hook_pooled", "vision.hook_out"])
    with pytest.raises(ConfigError, match="rows of different kinds"):
        models["paligemma"].inputs_for(["projector.hook_out", "blocks.0.hook_resid_post"])


def test_rows_of_a_paligemma_equal_transformers_with_its_own_processor(models, folder, tmp_path):
    from transformers import PaliGemmaForConditionalGeneration

    model, site = models["paligemma"], "blocks.1.hook_resid_post"
    store = record(model, folder, tmp_path / "r", site, options=InputOptions(prompt="caption en"))
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(models["folder"], attn_implementation="eager").eval()
    for context in (1, 5):
        document = int(store.documents[context, 0])
        text = store.document_facts[document]["text"]
        image = Image.open(folder / store.document_names[document])
        inputs = models["processor"](text="<image>caption en", images=image, suffix=text, return_tensors="pt")
        inputs.pop("labels", None)
        with torch.no_grad():
            hidden = theirs(**inputs, output_hidden_states=True).hidden_states[2][0]
        n = hidden.shape[0]
        assert store.tokens[context, :n].tolist() == inputs["input_ids"][0].tolist()
        rows = store.rows_of_context(context)
        positions = store.positions[rows]
        torch.testing.assert_close(store[site][rows], hidden[torch.from_numpy(positions).long()], rtol=1e-4, atol=1e-4)
        roles = store.roles[context]
        assert (roles[:9] == Role.IMAGE).all()
        assert roles[9] == Role.BOS
        assert (roles[n:] == Role.PADDING).all()
        assert (roles[10:n] == np.where(inputs["token_type_ids"][0, 10:] == 1, Role.ANSWER, Role.PROMPT)).sum() == n - 11
    kinds = store.by_kind(site)
    assert kinds["image"].rows == 90
    assert kinds["image"].norms.median != kinds["text"].norms.median
    assert store.outlier_rule.image is not None
    token = store.place_of(10)
    assert (token.role, token.patch, token.token_id) == ("prompt", None, int(store.tokens[0, 11]))


def test_a_broken_picture_is_named_and_nothing_of_what_was_recorded_is_lost(models, folder, tmp_path):
    model, site, out = models["siglip"], "vision.hook_out", tmp_path / "r"
    for i in range(10, 30):
        (folder / f"q{i}.png").write_bytes(file_of(i))
    names = [d.name for d in open_pictures(str(folder)).documents(0)]
    (folder / names[22]).write_bytes(file_of(3)[:70])
    with pytest.raises(CorpusError, match=f"Document 22 of the corpus, {names[22]}, cannot be used.*broken") as refusal:
        record(model, folder, out, site)
    assert "--bad-pictures skip" in str(refusal.value)
    assert len(ActivationStore.open(out).entries) == 5  # four pictures a shard
    skipping = InputOptions(bad_pictures="skip")
    store = record(model, folder, out, site, options=skipping)
    assert store.n_contexts == 29
    assert store.manifest.skipped_documents == 1
    assert store.document_names == names
    assert "broken" in store.document_facts[22]["skipped"]
    assert store.thumbnail(22) is None
    once = record(model, folder, tmp_path / "once", site, options=skipping)
    assert contents(out) == contents(tmp_path / "once")
    assert once.n_contexts == 29


def test_a_recording_that_is_extended_equals_one_made_at_once(models, folder, tmp_path):
    model, site = models["paligemma"], "blocks.0.hook_resid_post"
    for tokens in (20, 90, 2000):
        record(model, folder, tmp_path / "parts", site, tokens=tokens, context=30)
    record(model, folder, tmp_path / "once", site, tokens=2000, context=30)
    parts, once = (ActivationStore.open(tmp_path / name) for name in ("parts", "once"))
    assert torch.equal(parts[site][:], once[site][:])
    assert parts.document_facts == once.document_facts
    (folder / "p4.png").write_bytes(file_of(99))
    with pytest.raises(RecordingError, match="holds another recording"):
        record(model, folder, tmp_path / "parts", site, tokens=3000, context=30)


def test_text_that_does_not_fit_its_context_is_refused_with_the_length_that_it_needs(models, folder, tmp_path):
    with pytest.raises(CorpusError, match="Give --context"):
        record(models["paligemma"], folder, tmp_path / "r", "blocks.0.hook_resid_post", context=13)
    with pytest.raises(ConfigError, match="at least 12"):
        record(models["paligemma"], folder, tmp_path / "r", "blocks.0.hook_resid_post", context=9)
    with pytest.raises(ConfigError, match="it is 16"):
        record(models["siglip"], folder, tmp_path / "r", "vision.hook_out", context=64)


def test_rows_of_one_kind_are_read_alone_each_once_an_epoch(models, folder, tmp_path):
    model, site = models["paligemma"], "blocks.0.hook_resid_post"
    store = record(model, folder, tmp_path / "r", site)
    image = store.row_roles == Role.IMAGE
    for kind, rows in (("image", image), ("text", ~image), ("all", image | True)):
        batches = store.shuffled(site, 7, epochs=1, kind=kind)
        read = torch.cat(list(batches))
        assert batches.n_rows == len(read) == rows.sum()
        assert torch.equal(read.sum(1).sort().values, store[site][np.flatnonzero(rows)].sum(1).sort().values)
        state = batches.state_dict()
        assert state.get("rows", "all") == kind
    with pytest.raises(RecordingError, match="another order"):
        store.shuffled(site, 7, kind="image").load_state_dict(state)


def test_scenes_and_pages_are_corpora_that_say_what_they_show(models, tmp_path):
    from scope.activations.scenes.scene import scene

    documents = read("scenes:5")
    again = read("scenes:5")
    assert [d.crc32 for d in documents] == [d.crc32 for d in again]
    _, seed, index = documents[3].name.split()
    shown = scene(int(seed), int(index))
    assert np.array_equal(Image.open(io.BytesIO(documents[3].picture)), shown.picture)
    assert documents[3].text == shown.text
    assert (documents[3].question, documents[3].answer.strip()) in {(q.prompt, q.answer) for q in shown.questions()}
    assert len(read("pages:3")) == 3
    with pytest.raises(CorpusError, match="give a number"):
        read("scenes:many")


def planned(model, folder, out, options=InputOptions(), **more):
    site = "vision.hook_out"
    config = HarvestConfig(sites=(site,), tokens=100_000, context=16, batch_contexts=4, dtype="float32", shard_rows=64)
    maker = model.inputs_for([site], options)
    return plan(model, maker, open_pictures(str(folder)), config, out, model.provenance, **more)


def test_broken_pictures_of_a_large_corpus_are_all_named_before_the_model_runs(models, folder, tmp_path):
    model = models["siglip"]
    for i in range(10, 30):
        (folder / f"q{i}.png").write_bytes(file_of(i, size=(4, 4)))
    names = [d.name for d in open_pictures(str(folder)).documents(0)]
    for i in (20, 27):
        (folder / names[i]).write_bytes(file_of(3)[:70])
    with pytest.raises(CorpusError, match="30 documents tried before the model runs: 2 cannot be used") as refusal:
        planned(model, folder, tmp_path / "r")
    assert f"Document 20, {names[20]}: " in str(refusal.value)
    assert f"Document 27, {names[27]}: " in str(refusal.value)
    skipping = InputOptions(bad_pictures="skip")
    scanned = planned(model, folder, tmp_path / "r", skipping).scan
    assert (scanned.whole, scanned.partly, scanned.ended, scanned.unusable) == (30, 0, True, 2)
    record(model, folder, tmp_path / "r", "vision.hook_out", options=skipping, tokens=8 * 16)
    assert planned(model, folder, tmp_path / "r", skipping).scan.whole == 22  # those that are still to be recorded


def test_a_corpus_of_which_nothing_can_be_used_says_so(models, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    skipping = InputOptions(bad_pictures="skip")
    with pytest.raises(CorpusError, match=r"None of the 1 documents of .*a\.png can be used, such as: a\.png cannot be read"):
        planned(models["siglip"], tmp_path / "a.png", tmp_path / "r", skipping)


def test_what_the_time_for_trying_pictures_did_not_reach_is_said(models, folder):
    maker = models["siglip"].inputs_for(["vision.hook_out"], InputOptions(bad_pictures="skip"))
    corpus = open_pictures(str(folder))
    assert str(scan(maker, corpus.documents(), 16, 10, seconds=0)).startswith(
        "0 documents tried before the model runs; the rest"
    )
    (folder / "p3.png").write_bytes(b"no picture")
    (folder / "p4.png").write_bytes(file_of(4)[:70])
    problems = [maker.problem_of(d, 16, whole=False) is not None for d in corpus.documents()]
    assert sum(problems) == 1  # a file that was cut short has its header


def test_a_row_of_nulls_is_a_document_that_cannot_be_used(models, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = {"image": pa.array([{"bytes": file_of(1)}, None, {"bytes": None, "path": None}, {"bytes": file_of(2)}], kind)}
    parquet.write_table(pa.table(rows | {"text": ["a", None, "b", "c"]}), tmp_path / "set.parquet")
    assert [d.picture is None for d in read(tmp_path / "set.parquet")] == [False, True, True, False]
    store = record(
        models["siglip"], tmp_path / "set.parquet", tmp_path / "r", "vision.hook_out", options=InputOptions(bad_pictures="skip")
    )
    assert (store.n_contexts, store.manifest.skipped_documents) == (2, 2)


@pytest.mark.parametrize("name", ["../secret.png", "more/../../secret.png", "/etc/secret.png"])
@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv"])
def test_metadata_of_a_folder_names_no_file_outside_it(folder, form, name):
    (folder / form).write_text(f"file_name\n{name}\n" if form.endswith("csv") else json.dumps({"file_name": name}))
    for spec in (folder, folder / form):
        with pytest.raises(CorpusError, match="lies outside its folder"):
            read(spec)
    (folder / form).write_text("file_name\nmore/../p1.png\n" if form.endswith("csv") else '{"file_name": "more/../p1.png"}')
    assert len(read(folder)) == 1


def test_records_of_the_hub_name_no_files_of_this_machine(tmp_path):
    (tmp_path / "p.png").write_bytes(file_of(1))
    fields = PictureFields(base=None)
    assert fields.document({"image": str(tmp_path / "p.png")}, "a set", "").picture is None
    with_bytes = _with_bytes({"image": {"bytes": None, "path": str(tmp_path / "p.png")}, "text": "a"}, ["image"])
    assert fields.document(with_bytes, "a set", "").picture == file_of(1)
