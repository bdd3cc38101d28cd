"""An index holds the model's vectors of every page, goes on where it was stopped, and finds what brute force finds."""

import io
import json
import shutil

import pytest
import torch
from PIL import Image

import scope.pages.build
from scope.errors import PictureError
from scope.models.load import load_model
from scope.pages.build import build_index
from scope.pages.errors import PagesError
from scope.pages.index import Index
from scope.pages.sources import find_sources
from tests.models.vision_twins import save_with_words
from tests.pages.conftest import picture

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
QUERIES = ["the dog runs", "who sails over the moon?", "a"]


def pdf(*texts: str | None, size: tuple[int, int] = (100, 60)) -> bytes:
    """A PDF with a black box on each page, or with nothing where a text is None."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in texts:
        stream = "" if text is None else f"0 0 0 rg {10 + 5 * len(text)} 10 20 20 re f"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Contents {len(objects)} 0 R >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, io.SEEK_END)
    for i, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(f"{i} 0 obj\n{body}\nendobj\n".encode())
    start = out.tell()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n".encode())
    out.write(f"<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode())
    return out.getvalue()


@torch.no_grad()
def test_an_index_holds_the_vectors_that_the_model_gives_its_pages(index, model, folder_of_pages):
    assert [page.name for page in index.pages] == [*(f"{i}.png" for i in range(6)), "more/6.png"]
    for i, page in enumerate(index.pages):
        vectors = model.embed_pages(model.prepare_pages(str(folder_of_pages / page.file)))[0]
        torch.testing.assert_close(index.vectors(i), vectors, rtol=0, atol=1e-6)
        assert (page.width, page.height) == (40, 30)
        again = model.embed_pages(model.prepare_pages(index.picture(i)))[0]
        torch.testing.assert_close(again, vectors, rtol=0, atol=1e-6)  # what is kept of a page is what the model saw
    assert index.shown(0).size == (448, 336)


def brute_force(queries: list[torch.Tensor], pages: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([[sum(max(float(a @ b) for b in page) for a in query) for page in pages] for query in queries])


def test_a_search_is_brute_force_and_a_batch_of_queries_is_each_alone(index):
    pages = [index.vectors(i) for i in range(len(index))]
    expected = brute_force(index.queries(QUERIES), pages)
    torch.testing.assert_close(index.scores(QUERIES), expected, rtol=0, atol=2e-5)
    together = index.search(QUERIES, k=3)
    for text, hits, row in zip(QUERIES, together, expected, strict=True):
        alone = index.search(text, k=3)
        assert [hit.page for hit in alone] == [hit.page for hit in hits] == row.argsort(descending=True)[:3].tolist()
        assert [hit.score for hit in alone] == pytest.approx([hit.score for hit in hits], abs=2e-5)
        assert hits.median == pytest.approx(float(row.median()), abs=2e-5)


def test_half_precision_moves_scores_by_rounding_alone_and_weighs_half(index, model, folder_of_pages, tmp_path):
    half = build_index(model, folder_of_pages, tmp_path / "half")
    assert half.manifest.dtype == "float16"
    torch.testing.assert_close(half.scores(QUERIES), index.scores(QUERIES), rtol=0, atol=0.02)
    files = [next((one.folder / "shards").glob("*.safetensors")).stat().st_size for one in (half, index)]
    assert files[0] < 0.7 * files[1]


def test_an_index_that_was_stopped_goes_on_and_is_the_same(index, model, folder_of_pages, tmp_path, monkeypatch):
    monkeypatch.setattr(scope.pages.build, "PAGES_A_SHARD", 2)
    runs = []

    def stop(done: int, total: int, numbers: dict) -> None:
        runs.append(numbers["pages"])
        if done == 4 and len(runs) == 4:
            raise KeyboardInterrupt

    settings = {"dtype": "float32", "batch": 1}
    with pytest.raises(KeyboardInterrupt):
        build_index(model, folder_of_pages, tmp_path / "index", **settings, on_progress=stop)
    assert len(Index.open(tmp_path / "index")) == 4
    embedded = []
    record = model.record
    monkeypatch.setattr(
        model, "record", lambda inputs, sites: embedded.append(len(inputs["input_ids"])) or record(inputs, sites)
    )
    rest = build_index(model, folder_of_pages, tmp_path / "index", **settings)
    assert sum(embedded) == 3
    assert rest.pages == index.pages
    torch.testing.assert_close(rest.scores(QUERIES), index.scores(QUERIES), rtol=0, atol=1e-5)
    build_index(model, folder_of_pages, tmp_path / "index", **settings)
    assert sum(embedded) == 3


def test_pages_of_a_pdf_are_rendered_and_an_empty_one_is_named(model, tmp_path):
    (tmp_path / "report.pdf").write_bytes(pdf("a", None, "bcd"))
    index = build_index(model, tmp_path / "report.pdf", tmp_path / "index", dpi=72)
    assert [page.name for page in index.pages] == ["report.pdf#1", "report.pdf#2", "report.pdf#3"]
    assert [page.blank for page in index.pages] == [False, True, False]
    assert (index[0].width, index[0].height) == (100, 60)
    assert "1 blank" in repr(index)
    assert index.number("report.pdf#2") == 1
    assert not torch.equal(index.vectors(0), index.vectors(2))
    assert "(blank)" in str(index.search("the dog", k=3))


def test_what_cannot_be_read_is_named_and_left_out_or_stops_the_work_with_nothing_lost(model, tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in (0, 3):
        picture(i).save(pages / f"{i}.png")
    (pages / "1.png").write_bytes((pages / "0.png").read_bytes()[:60])
    (pages / "2.pdf").write_bytes(b"%PDF-1.4 and nothing")
    (pages / "notes.txt").write_text("no page")
    assert find_sources(pages)[2] == 1
    index = build_index(model, pages, tmp_path / "index")
    assert [page.name for page in index.pages] == ["0.png", "3.png"]
    assert [skip.page for skip in index.skipped] == ["1.png", "2.pdf"]
    assert "broken" in index.skipped[0].reason
    assert "2 more skipped" in repr(index)
    with pytest.raises(PagesError, match=r"1\.png is broken(.|\n)*--bad skip"):
        build_index(model, pages, tmp_path / "other", bad="refuse", batch=1)
    assert len(Index.open(tmp_path / "other")) == 1
    picture(1).save(pages / "1.png")
    mended = build_index(model, pages, tmp_path / "index")
    assert [page.name for page in mended.pages] == ["0.png", "3.png", "1.png"]
    assert [skip.page for skip in mended.skipped] == ["2.pdf"]


def test_a_page_too_large_to_render_is_skipped_before_a_pixel_is(model, tmp_path):
    (tmp_path / "huge.pdf").write_bytes(pdf("a", size=(14_000, 14_000)))
    with pytest.raises(PagesError, match="at most 89,478,485 are rendered"):
        build_index(model, tmp_path / "huge.pdf", tmp_path / "index", dpi=300)


def test_a_corpus_of_pictures_is_indexed_by_the_names_of_its_documents(model, tmp_path):
    index = build_index(model, "pages:3", tmp_path / "index")
    assert {page.name for page in index.pages} == {f"pages 1000000 {i}" for i in range(3)}
    assert (index[0].width, index[0].height) == (64, 64)
    assert len(build_index(model, "pages:4", tmp_path / "index")) == 4
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        picture(0).save(tmp_path / folder / "same.png")
    with pytest.raises(PagesError, match=r"Two sources are called same\.png"):
        build_index(model, [tmp_path / "a", tmp_path / "b"], tmp_path / "other")


def test_pictures_in_memory_can_be_indexed_under_names(model, tmp_path):
    index = build_index(model, {"first": picture(0), "second": picture(1)}, tmp_path / "index")
    assert [page.name for page in index.pages] == ["first", "second"]
    assert index.manifest.sources == ("pictures in memory",)


def test_another_model_other_settings_and_changed_files_are_refused(
    index, model, folder_of_pages, tmp_path, toy_text, tiny_model
):
    other = load_model(str(save_other(tmp_path, toy_text)))
    with pytest.raises(PagesError, match="this model is"):
        Index.open(index.folder, other)
    copy = tmp_path / "copy"
    shutil.copytree(index.folder, copy)
    with pytest.raises(PagesError, match="this model is"):
        build_index(other, folder_of_pages, copy, dtype="float32")
    with pytest.raises(PagesError, match="dtype float32, not float16"):
        build_index(model, folder_of_pages, copy)
    pages = tmp_path / "pages"
    shutil.copytree(folder_of_pages, pages)
    picture(77).save(pages / "2.png")
    with pytest.raises(PagesError, match=r"2\.png has changed"):
        build_index(model, pages, copy, dtype="float32")
    with pytest.raises(PagesError, match="holds other files"):
        build_index(model, folder_of_pages, pages)
    with pytest.raises(PagesError, match="searched with a ColPali"):
        build_index(tiny_model, folder_of_pages, tmp_path / "new")


def save_other(tmp_path, toy_text):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    save_with_words(folder, toy_text, retrieval=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["embedding_proj_layer.bias"] += 0.1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "holds no page index"),
        (lambda folder: (folder / "index.json").write_text("[[["), "is damaged"),
        (lambda folder: edit(folder / "index.json", schema=9), "schema 9"),
        (lambda folder: edit(folder / "index.json", grid=[99, 99]), "do not fit"),
        (lambda folder: (folder / "shards" / "000000.json").rename(folder / "shards" / "000001.json"), "lacks a shard"),
        (lambda folder: edit(folder / "shards" / "000000.json", pages=[{"file": 3}]), "is damaged"),
        (lambda folder: flip(folder / "shards" / "000000.safetensors"), "checksum"),
        (lambda folder: (folder / "shards" / "000000.safetensors").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_index_is_refused(index, model, tmp_path, damage, message):
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    damage(folder)
    with pytest.raises(PagesError, match=message):
        Index.open(folder, model).search("the dog")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def test_what_is_no_query_or_no_page_is_refused_with_the_way_out(index, tmp_path):
    for empty in ("", "  \n"):
        with pytest.raises(PagesError, match="query is empty"):
            index.search(empty)
    with pytest.raises(PagesError, match="no query"):
        index.search([])
    with pytest.raises(PagesError, match="k is 0"):
        index.search("a", k=0)
    with pytest.raises(PagesError, match="number from 0 to 6"):
        index.number("99")
    with pytest.raises(PagesError, match="There is no"):
        find_sources(tmp_path / "nothing")
    with pytest.raises(PagesError, match="no page in what is given"):
        find_sources(tmp_path)
    assert len(index.search("the dog", k=99)) == 7
    assert "99 were asked for" in str(index.search("the dog", k=99))
    assert index.number(3) == index.number("3.png") == 3
    assert index.number("6.png") == index.number("more/6.png") == 6


def test_names_and_queries_of_others_run_nothing_in_a_notebook(model, tmp_path):
    index = build_index(model, {"<script>x</script>": picture(0)}, tmp_path / "index")
    html = index.search("<b>dog</b>")._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html


def test_a_missing_picture_is_said_only_when_it_is_looked_at(index, model, tmp_path):
    shutil.copytree(index.folder, tmp_path / "index")
    shutil.rmtree(tmp_path / "index" / "pictures")
    copy = Index.open(tmp_path / "index", model)
    assert copy.search("the dog").hits == index.search("the dog").hits
    with pytest.raises(PictureError):
        copy.picture(0)
    assert isinstance(index.picture(0), Image.Image)
