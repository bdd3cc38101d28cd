"""Packs whose files were damaged or forged, checksums and all, are refused in words or read; nothing else escapes."""

import contextlib
import gzip
import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.labels.label import label_latents
from scope.features.pack.format import GROUPS
from scope.whole_files import file_sha256
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged") / "pack"
    make_toy_pack(folder, n_contexts=12, health={"evaluation": {"arms": {"sae": {"fvu": 0.1}}}})
    return folder


@pytest.fixture
def folder(toy, tmp_path):
    return shutil.copytree(toy, tmp_path / "pack")


def reseal(folder: Path) -> None:
    """Give every file the size and checksum that it has now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        if (folder / name).is_file():
            entry.update(size=(folder / name).stat().st_size, sha256=file_sha256(folder / name))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def use(folder: Path) -> None:
    """All that pages, notebooks and exports read of a pack."""
    with Pack.open(folder) as pack:
        pack.find("dog"), pack.fires_on("dog"), pack.promotes("dog"), pack.steerable(), pack.map, pack.health, pack.controls
        list(label_latents(pack, range(3), None))
        for i in (0, 1, 4, 5):
            feature = pack[i]
            repr(feature), feature._repr_html_(), feature.neighbours, feature.opposites, feature.logit_histogram
            [feature.examples(group) for group in GROUPS]
        for to in ("csv", "json", "neuronpedia", "saedashboard", "html"):
            pack.export(to, folder.parent / f"out.{to}.json", [1, 2, 3])


def refusal_of(folder: Path) -> str:
    """The message with which a pack is refused; "" where it is read. Anything else escapes."""
    try:
        use(folder)
    except PackError as refusal:
        return str(refusal)
    return ""


def hdf5(name, change):
    def forge(folder):
        with h5py.File(folder / name, "a") as file:
            change(file)

    return forge


def dataset(name, key, value):
    """A dataset replaced by `value` of the one that it was."""

    def change(file):
        before = file[key][()]
        del file[key]
        file[key] = value(before)

    return hdf5(name, change)


def entry(name, key, value):
    """One number of a dataset set to `value`."""

    def change(file):
        file[key][1, 0] = value

    return hdf5(name, change)


def array(name, value):
    return lambda folder: np.save(folder / name, value(np.load(folder / name)), allow_pickle=True)


def content(name, value):
    def forge(folder):
        data = value.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return forge


def table(change):
    def forge(folder):
        rows = pd.read_parquet(folder / "features.parquet")
        change(rows).to_parquet(folder / "features.parquet")

    return forge


def manifest(**changes):
    def forge(folder):
        value = json.loads((folder / "manifest.json").read_text()) | changes
        (folder / "manifest.json").write_text(json.dumps(value))

    return forge


FORGED = {
    "relation of other rows": dataset("relations.h5", "promoted_id", lambda v: v[:5]),
    "relation of texts": dataset("relations.h5", "promoted_id", lambda v: np.array([b"x"] * 24)),
    "relation of three dimensions": dataset("relations.h5", "neighbour_id", lambda v: v[..., None]),
    "relation that is a group": hdf5("relations.h5", lambda f: (f.__delitem__("token_id"), f.create_group("token_id"))),
    "relation that is missing": hdf5("relations.h5", lambda f: f.__delitem__("cofiring_p")),
    "relation in another file": hdf5(
        "relations.h5", lambda f: (f.__delitem__("token_id"), f.__setitem__("token_id", h5py.ExternalLink("/etc/passwd", "x")))
    ),
    "relation that points to itself": hdf5(
        "relations.h5", lambda f: (f.__delitem__("token_id"), f.__setitem__("token_id", h5py.SoftLink("/token_id")))
    ),
    "token beyond the vocabulary": entry("relations.h5", "token_id", 10**6),
    "latent beyond the dictionary": entry("relations.h5", "neighbour_id", 10**6),
    "latent below none": entry("relations.h5", "cofiring_id", -7),
    "logit that is no number": entry("relations.h5", "promoted_logit", np.nan),
    "totals of another vocabulary": dataset("relations.h5", "token_totals", lambda v: v[:3]),
    "controls outside the text": dataset("relations.h5", "control_position", lambda v: v + 10**9),
    "controls that run backwards": dataset("relations.h5", "control_start", lambda v: v[::-1].copy()),
    "controls of other latents": dataset("relations.h5", "control_latent", lambda v: v + 10**6),
    "examples without places": dataset("examples.h5", "position", lambda v: v[:, 0]),
    "examples of another window": dataset("examples.h5", "acts", lambda v: v[..., :3].copy()),
    "example outside the text": entry("examples.h5", "position", 10**12),
    "example in a band that is none": entry("examples.h5", "band", 77),
    "example that is no number": entry("examples.h5", "value", np.inf),
    "bands without edges": dataset("examples.h5", "band_edges", lambda v: v * 0),
    "no HDF5": content("examples.h5", "x" * 5000),
    "pickled objects": array("contexts.npy", lambda v: np.array([{"a": 1}, None], object)),
    "contexts of one dimension": array("contexts.npy", lambda v: v.ravel()),
    "contexts of other length": array("contexts.npy", lambda v: v[:, :7].copy()),
    "contexts of numbers with fractions": array("contexts.npy", lambda v: v.astype(np.float64)),
    "contexts of large ids": array("contexts.npy", lambda v: v.astype(np.uint32) + 10**9),
    "documents of other shape": array("documents.npy", lambda v: v[:2]),
    "map of three axes": array("map.npy", lambda v: np.zeros((24, 3), np.float32)),
    "map of no numbers": array("map.npy", lambda v: v * np.nan),
    "vocabulary of numbers": content("vocab.json.gz", "[1, 2]"),
    "vocabulary of four pieces": content("vocab.json.gz", '["a", "b", "c", "d"]'),
    "vocabulary that is an object": content("vocab.json.gz", "{}"),
    "vocabulary of brackets": content("vocab.json.gz", "[" * 10**5),
    "vocabulary with a lone surrogate": content("vocab.json.gz", json.dumps(["\ud800"] * 54)),
    "documents of brackets": content("documents.json", "[" * 10**5),
    "documents of numbers": content("documents.json", "[1]"),
    "health that is a list": content("health.json", "[]"),
    "health of brackets": content("health.json", "{" * 10**5),
    "table of fewer rows": table(lambda t: t.iloc[:5]),
    "table without a column": table(lambda t: t.drop(columns="max")),
    "table of texts for numbers": table(lambda t: t.assign(count="x")),
    "table of numbers for texts": table(lambda t: t.assign(label=1.5)),
    "table with absent labels": table(lambda t: t.assign(label=None)),
    "table of texts for lists": table(lambda t: t.assign(promotes="x")),
    "table of negative counts": table(lambda t: t.assign(count=-1)),
    "table of infinite maxima": table(lambda t: t.assign(max=np.inf)),
    "table without numbers": table(lambda t: t.assign(max=np.nan)),
    "manifest of other latents": manifest(d_sae=10**12),
    "manifest of no latents": manifest(d_sae=0),
    "manifest of text": manifest(d_sae="24"),
    "manifest of another window": manifest(window=10**9),
    "manifest of another context": manifest(n_ctx=7),
    "manifest without a norm": manifest(norm_median=float("nan")),
    "manifest of bins beyond": manifest(histogram={"low": 10**9, "bins": 160}),
    "manifest without files": manifest(files={}),
    "manifest of files elsewhere": manifest(files={"../victim": {"size": 1, "sha256": ""}}),
    "manifest of a model that is a list": manifest(model=[]),
    "manifest of brackets": content("manifest.json", "[" * 10**5),
    "manifest of another encoding": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe{\x00}\x00"),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_pack_is_refused_in_words_or_read(folder, forge):
    forge(folder)
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):  # where the manifest is what was forged
        reseal(folder)
    assert "pickle" not in refusal_of(folder)  # numpy would advise to run it


def test_files_damaged_by_a_seed_and_resealed_are_refused_in_words_or_read(toy, tmp_path):
    rng = random.Random(0)
    for number in range(16):
        folder = shutil.copytree(toy, tmp_path / "pack")
        file = rng.choice(sorted(folder.iterdir()))
        data = bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data[: rng.randrange(len(data))] if number % 5 == 0 else data)
        if file.name != "manifest.json":
            reseal(folder)
        assert "pickle" not in refusal_of(folder)
        shutil.rmtree(folder)


def test_a_vocabulary_that_unpacks_to_more_than_is_read_is_refused(folder, monkeypatch):
    monkeypatch.setattr("scope.features.pack.files.LARGEST", 10_000)
    content("vocab.json.gz", '["' + "a" * 100_000 + '"]')(folder)
    reseal(folder)
    assert "unpacks to more than 10,000 bytes" in refusal_of(folder)
