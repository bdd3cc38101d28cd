import os
import re
import resource

import h5py
import numpy as np
import pytest
import torch
from scope.activations.config import HarvestConfig
from scope.activations.errors import ActivationsError, CorpusError, RecordingError
from scope.activations.format.manifest import LOCK
from scope.activations.read.store import ActivationStore

from scope.errors import UnknownSite
from scope.sites import match_sites
from scope.whole_files import FolderInUse, only_writer
from tests.activations.toy import WIDTHS, Arithmetic, contents, numbers, record


def expected(store: ActivationStore, site: str) -> torch.Tensor:
    tokens, positions = torch.from_numpy(store.token_ids), torch.from_numpy(store.positions)
    return (tokens + positions / 64)[:, None] + torch.arange(WIDTHS[site]) / 8 + WIDTHS[site]


def test_every_row_is_what_the_model_gave_at_its_token_and_position(tmp_path):
    store = record(tmp_path / "r", dtype="float32")
    for site in ("a", "b.x"):
        assert torch.equal(store[site][:], expected(store, site))


def test_bfloat16_rounds_to_nearest_and_loses_nothing_else(tmp_path):
    store = record(tmp_path / "r")
    assert torch.equal(store["a"][:], expected(store, "a").bfloat16().float())


def test_every_token_but_those_excluded_has_a_row_in_order(tmp_path):
    store = record(tmp_path / "r")
    kept = (store.tokens != 2) & (store.tokens != 1) & (store.documents >= 0)
    assert np.array_equal(store.tokens[kept], store.token_ids)
    assert np.array_equal(np.nonzero(kept)[0], store.contexts_of)
    assert np.array_equal(np.nonzero(kept)[1], store.positions)


def test_shards_are_ordinary_hdf5_whose_bfloat16_every_tool_reads_as_numbers(tmp_path):
    store = record(tmp_path / "r")
    with h5py.File(tmp_path / "r" / "shard-00000.h5") as file:
        assert np.array_equal(file["acts/a"][:50], store["a"][:50].numpy())
        assert np.array_equal(file["tokens"][:], store.tokens[:32])


def test_the_manifest_says_what_the_recording_was_made_from(tmp_path):
    manifest = record(tmp_path / "r", provenance={"model": "toy", "weights_sha256": "abc"}).manifest
    assert manifest.model == {"model": "toy", "weights_sha256": "abc"}
    assert manifest.corpus == {"kind": "numbers", "n": 300}
    assert manifest.tokenizer["sha256"] == "bytes"
    assert manifest.config.exclude == ("bos", "special", "pad")
    assert "attention crosses" in manifest.layout.packing
    assert manifest.versions["torch"]


def test_a_recording_extended_in_steps_is_byte_for_byte_the_one_made_at_once(tmp_path):
    record(tmp_path / "once")
    for tokens in (700, 701, 5000, 12_000):
        record(tmp_path / "steps", tokens=tokens)
    assert contents(tmp_path / "steps") == contents(tmp_path / "once")


def test_extending_runs_only_what_is_missing(tmp_path):
    record(tmp_path / "r", tokens=8 * 64)
    model = Arithmetic()
    record(tmp_path / "r", tokens=20 * 64, model=model)
    assert model.ran == 12 * 64


def test_the_same_command_again_does_nothing_and_a_smaller_budget_takes_nothing_away(tmp_path):
    record(tmp_path / "r")
    before, model = contents(tmp_path / "r"), Arithmetic()
    record(tmp_path / "r", model=model)
    store = record(tmp_path / "r", tokens=100, model=model)
    assert model.ran == 0
    assert contents(tmp_path / "r") == before
    assert store.tokens.size >= 12_000


@pytest.mark.parametrize("stop_at", [1, 7, 9, 30])
def test_ctrl_c_loses_no_batch_and_changes_no_byte(tmp_path, stop_at):
    record(tmp_path / "whole")
    calls = 0

    def stop(done, total, numbers):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "r", on_progress=stop)
    model = Arithmetic()
    record(tmp_path / "r", model=model)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")
    assert model.ran == 188 * 64 - stop_at * 4 * 64


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"provenance": {"model": "another"}}, "model.model: recorded toy, asked another"),
        ({"corpus": numbers(299)}, "corpus.n: recorded 300, asked 299"),
        ({"dtype": "float32"}, "dtype: recorded bfloat16, asked float32"),
        ({"sites": ("a",)}, "sites: recorded 2, asked 1; not asked: b.x\n"),
        ({"sites": ("all",)}, "sites: recorded 2, asked 3; not recorded: b.y\n"),
        ({"context": 32}, "context: recorded 64, asked 32"),
        ({"seed": 1}, "seed: recorded 0, asked 1"),
    ],
)
def test_a_recording_made_from_something_else_is_refused_and_the_difference_named(tmp_path, changes, named):
    record(tmp_path / "r", tokens=2000)
    before = contents(tmp_path / "r")
    with pytest.raises(RecordingError, match=re.escape(named)):
        record(tmp_path / "r", **changes)
    assert contents(tmp_path / "r") == before


def test_another_batch_size_may_continue_and_the_manifest_says_so(tmp_path):
    record(tmp_path / "r", tokens=2000)
    store = record(tmp_path / "r", tokens=9000, batch_contexts=3)
    assert store.manifest.continued[0].batch_contexts == 3
    assert store.manifest.continued[0].from_context == 32
    assert torch.equal(store["a"][:], expected(store, "a").bfloat16().float())


def test_a_corpus_that_ends_early_is_recorded_whole_and_said(tmp_path):
    store = record(tmp_path / "r", corpus=numbers(40), tokens=1_000_000)
    assert store.exhausted
    assert sorted(store.document_names) == sorted(f"d{i}" for i in range(40))
    assert store.tokens[-1, -1] == 0
    model = Arithmetic()
    record(tmp_path / "r", corpus=numbers(40), tokens=2_000_000, model=model)
    assert model.ran == 0


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="numbers holds no text"):
        record(tmp_path / "r", corpus=numbers(0))


def test_nan_is_refused_with_shard_site_and_row_p35(tmp_path):
    clean = record(tmp_path / "clean")
    rows = clean.rows_of_context(32 + 5 * 4)  # the model fails at position 5 of the sixth batch of the second shard
    row = rows.start + int(np.flatnonzero(clean.positions[rows] == 5)[0]) - clean.starts[1]
    with pytest.raises(RecordingError, match=rf"a is NaN or Inf at row {row} of shard-00001\.h5"):
        record(tmp_path / "r", model=Arithmetic(nan_after=1024 + 2048 + 5 * 256))
    store = ActivationStore.open(tmp_path / "r")
    assert store.n_contexts == 32
    assert store.verify() == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norms_of_values_whose_squares_overflow_are_right_and_nothing_is_refused(tmp_path, dtype):
    class Huge(Arithmetic):
        def record(self, tokens, sites):
            return {site: 1e30 * x for site, x in super().record(tokens, sites).items()}

    store = record(tmp_path / "r", model=Huge(), dtype=dtype, tokens=3000)
    assert np.allclose(store.row_norms("a"), store["a"][:].double().norm(dim=1).numpy(), rtol=1e-6)


def test_two_writers_are_refused_and_the_first_is_named(tmp_path):
    record(tmp_path / "r", tokens=1000)
    with only_writer(tmp_path / "r", LOCK), pytest.raises(FolderInUse, match=f"is being written by process {os.getpid()} on "):
        record(tmp_path / "r")


def test_a_reader_may_read_what_is_sealed_while_a_writer_goes_on(tmp_path):
    seen = []

    def look(done, total, numbers):
        if done > 2 * 2048:
            store = ActivationStore.open(tmp_path / "r")
            seen.append(store.n_rows)
            assert store.verify() == []

    record(tmp_path / "r", on_progress=look)
    assert len(set(seen)) > 2


def test_a_file_limit_is_named_nothing_is_torn_and_the_same_call_goes_on(tmp_path):
    record(tmp_path / "whole", tokens=4096)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RecordingError, match="may not be that large here"):
            record(tmp_path / "r", tokens=4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "r").glob("shard*"))
    record(tmp_path / "r", tokens=4096)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_a_disk_too_small_for_the_plan_is_refused_before_the_model_runs(tmp_path):
    model = Arithmetic()
    with pytest.raises(RecordingError, match="are free in"):
        record(tmp_path / "r", tokens=10**15, model=model)
    assert model.ran == 0


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordingError, match=r"thesis\.tex"):
        record(tmp_path)


def test_a_run_that_failed_before_its_first_shard_binds_nobody(tmp_path):
    with pytest.raises(RecordingError, match="NaN"):
        record(tmp_path / "r", model=Arithmetic(nan_after=0))
    assert record(tmp_path / "r", context=32, tokens=1000).context == 32


def test_sites_are_named_by_name_glob_or_all_in_the_order_of_the_model():
    assert list(match_sites(("b.*", "a"), WIDTHS)) == ["a", "b.x", "b.y"]
    assert list(match_sites(("all",), WIDTHS)) == ["a", "b.x", "b.y"]
    with pytest.raises(UnknownSite, match=r"no site b\.z\.\n  Nearest: b\.[xy]"):
        match_sites(("b.z",), WIDTHS)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"context": 0}, "context is 0"),
        ({"dtype": "int8"}, "int8"),
        ({"exclude": ("eos",)}, "eos"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(wrong, named):
    with pytest.raises(ActivationsError, match=named):
        HarvestConfig(**wrong)


def test_an_unknown_site_is_refused_with_all_that_there_are():
    known = {"hook_embed": 4, "blocks.0.hook_resid_post": 4, "blocks.1.hook_resid_post": 4, "blocks.1.attn.hook_z": 4}
    with pytest.raises(UnknownSite, match=r"It has: hook_embed, blocks\.0-1\.hook_resid_post, blocks\.1\.attn\.hook_z"):
        match_sites(["blocks.2.hook_resid_post"], known)
