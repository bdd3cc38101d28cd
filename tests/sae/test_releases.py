"""Names of published SAEs, by SAELens' own table, read without SAELens."""

import itertools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from scope.cli.main import run
from scope.errors import DictionaryError
from scope.sae.hub.names import find_name, is_name
from scope.sae.hub.neuronpedia import neuronpedia_id, neuronpedia_url
from scope.sae.hub.releases import model_of, published, published_at, published_in, releases, size_of

CANONICAL = "gemma-scope-2b-pt-res-canonical"


def test_the_table_of_saelens_is_read_without_importing_saelens():
    code = "import sys; from scope.sae.hub.releases import published; published('gemma-scope-2b-pt-res-canonical')"
    end = "; sys.exit(bool({'sae_lens', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code + end], timeout=60).returncode == 0


def test_releases_say_repository_folder_and_neuronpedia_id_as_the_table_does():
    table = Path(find_spec("sae_lens").origin).with_name("pretrained_saes.yaml").read_text()
    assert releases() == [line.rstrip(":") for line in table.splitlines() if line[:1].strip()]
    small = {name: table[table.index(f"\n{name}:\n") :].split("\n", 120) for name in (CANONICAL, "gpt2-small-res-jb")}
    for release, lines in small.items():
        theirs = yaml.safe_load("\n".join(itertools.takewhile(lambda line: line[:1] in ("", " "), lines[2:120])))
        ours = {sae.id: (sae.repo, sae.path, sae.neuronpedia) for sae in published(release)}
        for row in theirs["saes"][:-1]:
            assert ours[row["id"]] == (theirs["repo_id"], row["path"], row.get("neuronpedia"))


def test_the_saes_of_the_instruction_tuned_model_are_of_that_model_though_the_table_names_its_base():
    assert model_of("gemma-scope-9b-it-res") == "google/gemma-2-9b-it"
    assert {sae.model for sae in published("gemma-scope-9b-it-res-canonical")} == {"google/gemma-2-9b-it"}


@pytest.mark.parametrize(
    "place",
    [
        "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
        "/cache/models--google--gemma-scope-2b-pt-res/snapshots/0a1b/layer_12/width_16k/average_l0_82",
    ],
)
def test_a_place_of_gemma_scope_has_its_page_on_neuronpedia(place):
    assert published_at(place).neuronpedia == "gemma-2-2b/12-gemmascope-res-16k"
    assert neuronpedia_id({"source": place}) == "gemma-2-2b/12-gemmascope-res-16k"
    assert neuronpedia_url("gemma-2-2b/12-gemmascope-res-16k", 7) == (
        "https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/7"
    )


@pytest.mark.parametrize(
    "provenance",
    [None, {}, {"source": "runs/dictionary"}, {"neuronpedia": "javascript:alert(1)//"}, {"neuronpedia": ["a/b"]}],
)
def test_what_has_no_page_on_neuronpedia_gets_no_link(provenance):
    assert neuronpedia_id(provenance) is None


def test_the_size_of_a_gemma_scope_follows_from_its_name():
    residual, attention = "layer_12/width_16k/average_l0_82", "layer_0/width_65k/average_l0_10"
    assert size_of("google/gemma-scope-2b-pt-res", residual) == 4 * (2 * 2304 * 2**14 + 2 * 2**14 + 2304)
    assert size_of("google/gemma-scope-2b-pt-att", attention) == 4 * (2 * 2048 * 2**16 + 2 * 2**16 + 2048)
    assert size_of("somebody/saes", "layer_12") is None
    assert len(published_in("Google/Gemma-Scope-2b-pt-RES")) > 300


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"{CANONICAL}/layer_12/width_16k/canonical", ("blocks.12.hook_resid_post of google/gemma-2-2b, L0 82", "302 MB")),
        ("https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/9", ("latent 9", "average_l0_82")),
        (
            "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_87",
            ("a transcoder from blocks.5.ln2.hook_normalized to blocks.5.hook_mlp_out",),
        ),
        ("gemma-scope-2b-pt-att-canonical/layer_12/width_16k/canonical", ("blocks.12.attn.hook_z",)),
        ("gemma-scope-2b-pt-mlp-canonical/layer_12/width_16k/canonical", ("blocks.12.hook_mlp_out",)),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_21", ("hook_embed",)),
        ("gemma-3-1b/13-gemmascope-2-res-16k", ("blocks.13.hook_resid_post of google/gemma-3-1b-pt",)),
        ("gemma-scope-9b-it-res-canonical/layer_20/width_16k/canonical", ("of google/gemma-2-9b-it",)),
    ],
)
def test_info_says_what_a_name_stands_for(name, says, capsys):
    assert run(["info", name]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in (*says, "next: scope app"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (CANONICAL, r"holds 58 SAEs. Say which:(.|\n)*layer_25: width_16k/canonical"),
        (
            "gemma-scope-2b-pt-res/layer_12/width_16k",
            "average_l0_22, average_l0_41, average_l0_82, average_l0_176",
        ),
        ("gemma-scope-2b-pt-res/layer_12/width_17k", r"layer_12 has no width_17k. It has:(.|\n)*width_16k: average_l0_22"),
        (f"{CANONICAL}/layer_26/width_16k/canonical", r"has no layer_26(.|\n)*Did you mean .*layer_25/width_16k/canonical"),
        ("gemma-scope-2b-pt-rez", "Did you mean gemma-scope-2b-pt-res"),
        ("gpt2-small-res-jb/blocks.8.hook_resid_pre", r"SAEs of gpt2-small, and by name scope loads those of the Gemma family"),
        ("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "temporal SAEs"),
        ("gemma-2-2b/12-gemmascope-res-17k", "Did you mean gemma-2-2b/12-gemmascope-res-16k"),
        ("https://www.neuronpedia.org/gemma-2-2b/gemmascope-res-16k", "gemma-2-2b/0-gemmascope-res-16k"),
        ("https://example.org/gemma-2-2b/12-gemmascope-res-16k", "neither neuronpedia.org nor a hub"),
        (f"{CANONICAL}/../secret", "There is no folder"),
        ("google/gemma-scope-2b-pt-res@/layer_12", "There is no folder"),
        ("", "There is no folder"),
    ],
)
def test_what_is_no_whole_name_is_refused_with_what_there_is(name, says):
    with pytest.raises(DictionaryError, match=says):
        find_name(name)


def test_a_hub_id_of_another_model_stays_a_plain_hub_id():
    name = find_name("jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre@v1")
    assert (name.place, name.revision, name.published) == (
        "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre",
        "v1",
        None,
    )


def test_the_releases_of_gemma_models_are_listed_and_those_of_a_release_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["list", "releases"]) == 0
    printed = capsys.readouterr().out
    assert f"{CANONICAL}: 58 SAEs, of google/gemma-2-2b" in printed
    assert "gpt2" not in printed
    assert run(["list", "releases", "gemma-scope-9b-it-res-canonical"]) == 0
    assert "layer_20/width_16k/canonical" in capsys.readouterr().out
    assert run(["list", "releases", "gemma-scpe"]) == 2
    assert "Did you mean gemma-scope" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["params.npz", "sae_weights.safetensors", "cfg.json"])
def test_a_file_of_weights_in_the_current_folder_is_no_name(file):
    assert not is_name(file)
