"""What is exported is what the pack says, in the form that the other program reads, and nothing in it is run."""

import csv
import gzip
import io
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from scope.cli.main import run
from scope.errors import PackError
from scope.features.exports.export import FORMATS, tables
from scope.features.exports.histograms import bars, quantiles
from scope.features.face import Pack
from scope.features.pack.search import chosen
from tests.features.toy_pack import HOSTILE, make_toy_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "toy.pack"
    make_toy_pack(folder)
    store = Pack.open(folder)
    store.notes.set_label(1, "=dogs()", "some-model", 0.8)
    store.notes.set_label(7, "<script>alert(1)</script>", "you")
    store.notes.set_star(9, True)
    store.refresh()
    return store


def test_parquet_holds_the_table_with_the_labels_of_today(pack, tmp_path):
    table = pd.read_parquet(pack.export("parquet", tmp_path / "x.parquet"))
    assert len(table) == pack.d_sae
    assert table["label"][1] == "=dogs()"
    some = pd.read_parquet(pack.export("parquet", tmp_path / "y.parquet", [5, 3]))
    assert some.index.tolist() == [5, 3]
    assert some["count"].tolist() == [pack[5].row["count"], pack[3].row["count"]]


def test_p50_no_cell_of_a_csv_is_a_formula(pack, tmp_path):
    rows = list(csv.DictReader(io.StringIO(pack.export("csv", tmp_path / "x.csv").read_text("utf-8"))))
    assert [int(row["id"]) for row in rows] == list(range(pack.d_sae))
    for row, (_, expected) in zip(rows, pack.table.iterrows(), strict=True):
        assert float(row["mean"]) == expected["mean"]
        for name, cell in row.items():
            assert cell[:1] not in ("=", "+", "@", "\t") or _number(cell), (name, cell)
            assert cell[:1] != "-" or _number(cell)
    assert rows[1]["label"] == "'=dogs()"


def test_p50_hostile_texts_of_any_column_are_neutralised_alone_and_in_lists():
    table = pd.DataFrame({"one": HOSTILE, "many": [[text, " x"] for text in HOSTILE], "n": range(len(HOSTILE))})
    rows = list(csv.reader(io.StringIO(tables.csv(table).decode("utf-8"))))[1:]
    for row, text in zip(rows, HOSTILE, strict=True):
        for cell in row[1:3]:
            assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r")
        assert "\x00" not in row[1]
        if text.isprintable() and text[0] not in "=+-@":
            assert row[1] == text


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_json_holds_everything_and_is_strict(pack, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(pack.export("json", tmp_path / "x.json", "1,0").read_text(), parse_constant=refuse)
    assert found["about"]["site"] == pack.site
    one, dead = found["latents"]
    assert one["id"] == 1
    assert [e["value"] for e in one["examples"]["top"]] == [e.value for e in pack[1].examples("top", 99)]
    assert sum(one["histogram"]["counts"]) == one["count"]
    assert one["label_source"] == "some-model"
    assert (dead["count"], dead["histogram"]["counts"], dead["examples"]["top"]) == (0, [], [])


def test_p50_a_page_of_cards_holds_only_our_own_markup_and_fetches_nothing(pack, tmp_path):
    page, tags, names = pack.export("html", tmp_path / "x.html").read_text("utf-8"), set(), set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.add(tag)
            names.update(name for name, _ in attrs)

    Reader().feed(page)
    assert tags <= {"html", "head", "meta", "title", "body", "h1", "p", "section", "div", "span", "b", "bdi"}
    inert = {"style", "dir", "title", "role", "aria-label", "id", "lang", "charset", "http-equiv", "name", "content"}
    assert names <= inert
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert page.count("<section") == pack.d_sae
    assert "&lt;script&gt;" in page


def test_a_page_of_too_many_cards_is_refused(pack, tmp_path, monkeypatch):
    monkeypatch.setattr("scope.features.exports.export.MOST", 3)
    with pytest.raises(PackError, match="out_score:50"):
        pack.export("html", tmp_path / "x.html")


def test_neuronpedias_folder_holds_features_activations_and_given_labels(pack, tmp_path):
    folder = pack.export("neuronpedia", tmp_path / "np", name="toy-res")
    assert folder == tmp_path / "np" / "toy" / "2-toy-res"
    heads = {name: json.loads((folder / f"{name}.jsonl").read_text()) for name in ("release", "model", "sourceset", "source")}
    assert heads["source"]["id"] == "2-toy-res"
    assert heads["source"]["setName"] == heads["sourceset"]["name"] == "toy-res"
    assert heads["sourceset"]["releaseName"] == heads["release"]["name"]

    def lines(part):
        return [json.loads(line) for line in gzip.open(folder / part / "batch-0.jsonl.gz", "rt", encoding="utf-8")]

    features, activations, explanations = (lines(part) for part in ("features", "activations", "explanations"))
    assert [f["index"] for f in features] == [str(i) for i in range(pack.d_sae)]
    for f in features:
        latent = pack[int(f["index"])]
        assert f["frac_nonzero"] == latent.row["density"]
        assert sum(f["freq_hist_data_bar_heights"]) == pytest.approx(latent.row["count"], abs=0.1)
        assert f["pos_str"] == [token for token, _ in latent.promoted]
    for a in activations:
        assert len(a["tokens"]) == len(a["values"])
        assert a["values"][a["maxValueTokenIndex"]] == a["maxValue"] == max(a["values"])
    mine = [a for a in activations if a["index"] == "4" and a["binMin"] == -1]
    assert [round(e.value, 3) for e in pack[4].examples("top", 99)] == [
        round(a["values"][a["qualifyingTokenIndex"]], 3) for a in mine
    ]
    assert len({a["id"] for a in activations}) == len(activations)
    assert {(e["index"], e["description"], e["notes"]) for e in explanations} == {
        ("1", "=dogs()", "by some-model, balanced accuracy 0.800"),
        ("7", "<script>alert(1)</script>", "by a person"),
    }
    for table, rows in {**heads, "Neuron": features[0], "Activation": activations[0], "Explanation": explanations[0]}.items():
        columns = {name.rstrip("*"): name.endswith("*") for name in NEURONPEDIA[table].split()}
        assert set(rows) <= set(columns)
        assert {name for name, required in columns.items() if required} <= set(rows)


NEURONPEDIA = {
    "release": """name* visibility description* creatorName* urls creatorId* createdAt""",
    "model": """id* displayNameShort displayName creatorId* visibility instruct layers* neuronsPerLayer* createdAt owner*
    updatedAt""",
    "sourceset": """modelId* name* hasDashboards visibility description* type creatorName* urls creatorId* releaseName
    createdAt""",
    "source": """id* modelId* hasDashboards visibility setName* creatorId* num_prompts num_tokens_in_prompt dataset notes
    createdAt""",
    "Neuron": """modelId* layer* index* sourceSetName creatorId createdAt maxActApprox hasVector vector vectorLabel
    vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices neuron_alignment_values
    neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 correlated_features_indices
    correlated_features_pearson correlated_features_l1 neg_str neg_values pos_str pos_values frac_nonzero
    freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values
    decoder_weights_dist""",
    "Activation": """id* tokens dataIndex index* layer* modelId* dataSource maxValue* maxValueTokenIndex* minValue* values
    dfaValues dfaTargetIndex dfaMaxValue creatorId* createdAt lossValues logitContributions binMin binMax binContains
    qualifyingTokenIndex""",
    "Explanation": """id* modelId* layer* index* description* authorId* notes typeName explanationModelName createdAt""",
}
"""Columns of Neuronpedia's tables of which we fill any, * where it has no default: its prisma/schema.prisma, August 2026."""


@pytest.mark.parametrize("name", ["x/..", "..", "a\\..", "C:"])
def test_a_model_called_by_another_folder_is_not_written_there(pack, tmp_path, name):
    forged = Pack(pack.folder, replace(pack.manifest, model={"model": name}))
    with pytest.raises(PackError, match="plain name"):
        forged.export("neuronpedia", tmp_path / "np")
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_refused_before_an_export_and_when_it_is_read(pack, tmp_path):
    for name in ("contexts.npy", "examples.h5", "documents.npy", "relations.h5", "features.parquet"):
        folder = shutil.copytree(pack.folder, tmp_path / name)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(PackError, match=f"{name} is damaged"):
            Pack.open(folder).export("csv", tmp_path / "x.csv", "1-3")
        assert not (tmp_path / "x.csv").exists()
    with pytest.raises(PackError, match=r"contexts\.npy is damaged"):
        Pack.open(tmp_path / "contexts.npy")[1].examples()


def test_no_export_shows_the_folders_of_this_machine(pack, tmp_path):
    written = json.loads((pack.folder / "manifest.json").read_text())
    written["model"]["model"], written["dictionary"]["path"] = "/home/ann/secret/model", "C:\\Users\\ann\\secret\\dictionary"
    folder = shutil.copytree(pack.folder, tmp_path / "pack")
    (folder / "manifest.json").write_text(json.dumps(written))
    shown = Pack.open(folder)
    assert shown.model.name == "/home/ann/secret/model"
    for to in FORMATS:
        out = shown.export(to, tmp_path / f"out.{to}.json", "1-2")
        files = [out] if out.is_file() else [f for f in out.rglob("*") if f.is_file()]
        for file in files:
            data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            assert b"secret" not in data
    assert "secret" not in repr(shown[1]) + shown[1]._repr_html_()


FEATURE = {
    *("feature_tables_data", "acts_histogram_data", "logits_table_data", "logits_histogram_data"),
    *("sequence_data", "prompt_data", "dfa_data", "decoder_weights_data"),
}
STATISTICS = {"max", "frac_nonzero", "skew", "kurtosis", "quantile_data", "quantiles", "ranges_and_precisions"}


def test_saedashboards_json_has_its_fields(pack, tmp_path):
    found = json.loads(pack.export("saedashboard", tmp_path / "x.json", "0-5").read_text())
    assert set(found) == {"feature_data_dict", "feature_stats"}
    assert set(found["feature_stats"]) == STATISTICS
    assert found["feature_stats"]["max"] == pytest.approx(pack.table["max"][:6].tolist(), rel=1e-4)
    for name, feature in found["feature_data_dict"].items():
        assert set(feature) == FEATURE
        groups, latent = feature["sequence_data"]["seq_group_data"], pack[int(name)]
        if latent.dead:
            assert groups == []
            continue
        assert groups[0]["title"] == f"TOP ACTIVATIONS<br>MAX = {latent.row['max']:.3f}"
        for group in groups:
            for row in group["seq_data"]:
                n = len(row["token_ids"])
                assert n == len(row["feat_acts"]) == len(row["token_logits"])
                assert row["feat_acts"][n // 2] > 0  # where SAEDashboard looks for the peak
    with pytest.raises(PackError, match=r"end in \.json"):
        pack.export("saedashboard", tmp_path / "x.txt")


def test_saedashboard_reads_it_and_draws_its_page(pack, tmp_path):
    data = pytest.importorskip("sae_dashboard.sae_vis_data", reason="pip install sae-dashboard, in an environment of its own")
    file = pack.export("saedashboard", tmp_path / "x.json", "1-5")
    config = data.SaeVisConfig(hook_point=pack.site, features=[1, 2, 3, 4, 5])
    found = data.SaeVisData.load_json(str(file), config, None, None)
    assert sorted(found.feature_data_dict) == [1, 2, 3, 4, 5]
    shown = found.feature_data_dict[4].sequence_data.seq_group_data[0].seq_data[0]
    assert max(shown.feat_acts) == pytest.approx(pack[4].row["max"], rel=1e-3)


def test_bars_of_equal_width_hold_all_firings_within_a_bin_of_their_place():
    from scope.features.collect.codes import bins, edges, lowest_bin
    from scope.features.pack.format import N_BINS

    values = np.random.default_rng(0).lognormal(0, 0.7, 4000).astype(np.float32)
    low = lowest_bin(float(values.max()))
    counts = np.bincount(bins(values, low), minlength=N_BINS)
    centres, heights = bars(edges(low), counts, float(values.max()), 20)
    exact = np.histogram(values, 20, (0, values.max()))[0]
    assert sum(heights) == pytest.approx(4000, abs=0.1)
    assert np.abs(np.cumsum(heights) - np.cumsum(exact)).max() < 0.05 * 4000
    assert centres[0] == pytest.approx(values.max() / 40, rel=1e-3)
    at = np.array([0.2, 0.6, 0.9])
    everything = np.concatenate([np.zeros(4000), values])
    found = quantiles(edges(low), counts, 8000, at, float(values.max()))
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], np.quantile(everything, at[1:]), rtol=0.1)


@pytest.mark.parametrize(("which", "latents"), [("3,1-4,3", [3, 1, 2, 4]), ("starred", [9]), ("5", [5])])
def test_latents_are_named_by_numbers_ranges_and_stars(pack, which, latents):
    assert chosen(pack, which) == latents


def test_the_foremost_by_a_column_are_living_ones(pack):
    found = chosen(pack, "density:3")
    assert found == pack.table["density"].sort_values(ascending=False).index[:3].tolist()
    assert 0 not in chosen(pack, "out_score:99")


@pytest.mark.parametrize(
    ("which", "match"),
    [("24", "0 to 23"), ("5-3", "backwards"), ("dogs", "names no"), ("label:3", "no column label"), (",", "names no")],
)
def test_what_names_no_latents_is_refused(pack, which, match):
    with pytest.raises(PackError, match=match):
        chosen(pack, which)


@pytest.mark.parametrize("to", FORMATS)
def test_the_command_writes_each_format_and_says_where(pack, tmp_path, capsys, to):
    out = tmp_path / ("np" if to == "neuronpedia" else f"latents.{'json' if to == 'saedashboard' else to}")
    assert run(["export", str(pack.folder), "--to", to, "--latents", "1-3", "--out", str(out)]) == 0
    told = "".join(capsys.readouterr().out.split())
    assert "3latents" in told
    assert out.exists()
    assert not list(tmp_path.glob(".*"))


def test_a_place_that_is_taken_is_refused(pack, tmp_path):
    with pytest.raises(PackError, match="is a folder"):
        pack.export("csv", tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackError, match="is a file"):
        pack.export("neuronpedia", tmp_path / "file")
    with pytest.raises(PackError, match="saedashboard"):
        pack.export("xlsx", tmp_path / "x.xlsx")
