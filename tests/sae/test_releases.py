"""Names of published SAEs, by SAELens' own table, read without SAELens."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from scope.sae.hub.neuronpedia import neuronpedia_id, neuronpedia_url
from scope.sae.hub.releases import _head, model_of, published, published_at, published_in, releases, size_of

CANONICAL = "gemma-scope-2b-pt-res-canonical"


def test_the_table_of_saelens_is_read_without_importing_saelens():
    code = "import sys; from scope.sae.hub.releases import published; published('gemma-scope-2b-pt-res-canonical')"
    end = "; sys.exit(bool({'sae_lens', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code + end], timeout=60).returncode == 0


def test_releases_say_repository_folder_and_neuronpedia_id_as_the_table_parsed_in_one_does():
    table = Path(find_spec("sae_lens").origin).with_name("pretrained_saes.yaml").read_text()
    whole = yaml.load(table, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert releases() == list(whole)
    for release, theirs in whole.items():
        assert _head(release, "repo_id") == theirs["repo_id"]
    for release in (CANONICAL, "gemma-scope-2-1b-pt-res", "gpt2-small-res-jb"):
        ours = {sae.id: (sae.repo, sae.path, sae.neuronpedia) for sae in published(release)}
        rows = whole[release]["saes"]
        assert ours == {row["id"]: (whole[release]["repo_id"], row["path"], row.get("neuronpedia")) for row in rows}


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
