import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scope.activations.errors import ActivationsError, RecordingError
from scope.activations.read.from_other_libraries import import_activations
from scope.activations.read.store import ActivationStore
from scope.activations.read.to_other_libraries import to_sae_lens, to_safetensors

from scope.errors import UnknownSite
from tests.activations.test_outliers import Spiked
from tests.activations.toy import record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # what sae_lens says on import


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return record(tmp_path_factory.mktemp("convert") / "r", tokens=5000)


def cached(folder, window: int, d_in: int, site: str = "a"):
    """SAELens' own reader of cached activations, and all of its batches."""
    from sae_lens.training.activations_store import ActivationsStore

    loader = ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name=site, hook_head_index=None, context_size=window, d_in=d_in,
        n_batches_in_buffer=2, total_training_tokens=1000, store_batch_size_prompts=1, train_batch_size_tokens=16,
        prepend_bos=False, normalize_activations="none", device=torch.device("cpu"), dtype="float32",
        cached_activations_path=str(folder),
    )  # fmt: skip
    batches = [loader.get_raw_llm_batch() for _ in range(len(loader.cached_activation_dataset))]
    return torch.cat([acts for acts, _ in batches]), torch.cat([ids for _, ids in batches]) if batches[0][
        1
    ] is not None else None


def test_sae_lens_reads_what_is_exported_row_by_row_with_its_tokens(store, tmp_path):
    made = to_sae_lens(store, "a", tmp_path / "out", window=50)
    acts, ids = cached(tmp_path / "out", 50, 32)
    assert made.rows == len(acts) == store.n_rows // 50 * 50
    assert made.left_over == store.n_rows % 50
    assert torch.equal(acts, store["a"][: made.rows])
    assert np.array_equal(ids.numpy(), store.token_ids[: made.rows])


def test_sae_lens_trains_its_batches_from_an_export(store, tmp_path):
    from sae_lens.training.activations_store import ActivationsStore

    to_sae_lens(store, "a", tmp_path / "out", window=16)
    loader = ActivationsStore.from_cache_activations(
        None,
        SimpleNamespace(
            new_cached_activations_path=str(tmp_path / "out"), dtype="float32", hook_name="a", context_size=16, d_in=32,
            n_batches_in_buffer=8, training_tokens=1000, model_batch_size=4, device="cpu",
        ),
    )  # fmt: skip
    batch = loader.next_batch()
    assert batch.shape == (4, 32)
    assert {tuple(row) for row in batch.tolist()} <= {tuple(row) for row in store["a"][:].tolist()}


def test_contexts_stay_windows_where_all_have_equally_many_rows(tmp_path):
    store = record(tmp_path / "r", tokens=640, exclude=("bos",))
    assert to_sae_lens(store, "b.x", tmp_path / "out").window == 63


def test_a_recording_comes_back_from_sae_lens_with_what_is_known_and_says_what_is_not(store, tmp_path):
    made = to_sae_lens(store, "a", tmp_path / "out", window=50)
    back = import_activations(tmp_path / "out", tmp_path / "back")
    assert back.dtype == "bfloat16"
    assert torch.equal(back["a"][:], store["a"][: made.rows])
    assert np.array_equal(back.token_ids, store.token_ids[: made.rows])
    assert back.verify() == []
    assert back.manifest.model == {"model": "toy"}
    assert back.manifest.unknown == ["documents", "positions"]
    with pytest.raises(RecordingError, match=r"The positions of .* are unknown: it was imported from SAELens"):
        _ = back.positions


def test_what_sae_lens_itself_cached_is_imported(tmp_path):
    from datasets import Array2D, Dataset, Features, Sequence, Value
    from sae_lens import CacheActivationsRunner

    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)
    runner.cfg = SimpleNamespace(hook_name="blocks.0.hook_mlp_out", n_seq_in_buffer=6, d_in=8)
    runner.context_size = 5
    columns = {"blocks.0.hook_mlp_out": Array2D((5, 8), "float32"), "token_ids": Sequence(Value("int32"), length=5)}
    runner.features = Features(columns)
    (tmp_path / "cache" / ".tmp_shards").mkdir(parents=True)
    acts, ids = torch.randn(12, 5, 8), torch.randint(0, 99, (12, 5))
    for i in range(2):
        part = acts[6 * i : 6 * i + 6].reshape(-1, 8), ids[6 * i : 6 * i + 6].reshape(-1)
        runner._create_shard(part).save_to_disk(str(tmp_path / "cache" / ".tmp_shards" / f"shard_{i:05d}"), num_shards=1)
    assert isinstance(
        runner._consolidate_shards(tmp_path / "cache" / ".tmp_shards", tmp_path / "cache", copy_files=False), Dataset
    )
    back = import_activations(tmp_path / "cache", tmp_path / "back")
    assert torch.equal(back["blocks.0.hook_mlp_out"][:], acts.reshape(-1, 8))
    assert np.array_equal(back.tokens, ids.numpy())
    assert back.context == 5
    assert {"model", "corpus"} <= set(back.manifest.unknown)


def test_safetensors_lose_nothing_on_the_way_out_and_back(store, tmp_path):
    to_safetensors(store, tmp_path / "out")
    back = import_activations(tmp_path / "out", tmp_path / "back")
    for site in store.sites:
        assert torch.equal(back[site][:], store[site][:])
    for name in ("token_ids", "positions", "contexts_of", "tokens"):
        assert np.array_equal(getattr(back, name), getattr(store, name)), name
    known = store.documents >= 0
    names = [[s.document_names[d] for d in s.documents[known]] for s in (store, back)]
    assert names[0] == names[1]
    assert back.manifest.unknown == []
    assert back.verify() == []


def test_bare_tensors_become_a_recording_that_knows_only_its_rows(tmp_path):
    from safetensors.torch import save_file

    x = torch.randn(1000, 24, dtype=torch.float16)
    save_file({"resid": x}, tmp_path / "x.safetensors")
    back = import_activations(tmp_path / "x.safetensors", tmp_path / "back")
    assert torch.equal(back["resid"][:], x.float())
    assert {"token ids", "positions", "contexts", "documents"} <= set(back.manifest.unknown)
    with pytest.raises(RecordingError, match=r"token ids of .* are unknown"):
        _ = back.token_ids
    assert sum(len(b) for b in back.shuffled("resid", 100, epochs=1)) == 1000
    again = to_sae_lens(back, "resid", tmp_path / "again", window=10)
    acts, ids = cached(tmp_path / "again", 10, 24, "resid")
    assert again.rows == 1000
    assert torch.equal(acts, x.float())
    assert ids is None
    to_safetensors(back, tmp_path / "once more")
    assert torch.equal(import_activations(tmp_path / "once more", tmp_path / "last")["resid"][:], x.float())


def test_nothing_is_written_over_and_a_failure_leaves_no_folder(store, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    for convert in (lambda: to_sae_lens(store, "a", tmp_path / "full"), lambda: to_safetensors(store, tmp_path / "full")):
        with pytest.raises(RecordingError, match="not empty"):
            convert()
    with pytest.raises(UnknownSite):
        to_sae_lens(store, "c", tmp_path / "new")
    with pytest.raises(RecordingError, match="cannot be cut"):
        to_sae_lens(store, "a", tmp_path / "new", window=10**6)

    def stop(done, total, numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_safetensors(store, tmp_path / "new", on_progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_nan_among_foreign_activations_is_refused_and_leaves_nothing(tmp_path):
    from safetensors.torch import save_file

    x = torch.randn(100, 8)
    x[70, 3] = float("nan")
    save_file({"resid": x}, tmp_path / "x.safetensors")
    with pytest.raises(RecordingError, match="resid is NaN or Inf at row 70"):
        import_activations(tmp_path / "x.safetensors", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors"]


def test_what_holds_no_activations_is_refused_with_what_would_do(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RecordingError, match=r"state\.json"):
        import_activations(tmp_path, tmp_path / "out")
    from safetensors.torch import save_file

    save_file({"bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    with pytest.raises(RecordingError, match=r"bias \[4\] F32"):
        import_activations(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("form", ["safetensors", "sae_lens"])
def test_the_rule_for_outliers_and_the_rows_it_flags_go_out_and_come_back(tmp_path, form):
    store = record(tmp_path / "r", model=Spiked(), dtype="float32")
    to_safetensors(store, tmp_path / "out") if form == "safetensors" else to_sae_lens(store, "a", tmp_path / "out", window=1)
    back = import_activations(tmp_path / "out", tmp_path / "back")
    assert back.outlier_rule == store.outlier_rule
    assert np.array_equal(back.outliers("a"), store.outliers("a"))
    assert back.shuffled("a", 100).left_out == store.n_outliers("a") > 0


def test_what_it_was_made_from_goes_along(store, tmp_path):
    to_sae_lens(store, "a", tmp_path / "out", window=50)
    beside = json.loads((tmp_path / "out" / "recording.json").read_text())
    assert beside["manifest"] == store.manifest.to_json()
    assert beside["exported"]["window"] == 50


def test_imported_rows_of_huge_norm_are_flagged_by_the_rule_of_harvesting_and_not_trained_on(tmp_path):
    from safetensors.torch import save_file

    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    x[[7, 3999]] *= 1e4
    save_file({"resid": x}, tmp_path / "x.safetensors")
    store = import_activations(tmp_path / "x.safetensors", tmp_path / "back")
    median = x.norm(dim=1).sort().values[1999].item()
    assert store.outlier_rule.threshold["resid"] == pytest.approx(10 * median)
    assert store.outlier_rule.sample == {"contexts": 16, "rows": 4000, "from": "the first rows that were imported"}
    assert np.flatnonzero(store.outliers("resid")).tolist() == [7, 3999]
    assert store.n_outliers("resid") == store.shuffled("resid", 100).left_out == 2
    without = import_activations(tmp_path / "x.safetensors", tmp_path / "all", outlier_times=0.0)
    assert without.shuffled("resid", 100).left_out == 0
    with pytest.raises(ActivationsError, match=r"outlier_times is 0\.5"):
        import_activations(tmp_path / "x.safetensors", tmp_path / "none", outlier_times=0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", torch.full((3,), 9, dtype=torch.int32)),
        ("position", torch.full((3,), 400, dtype=torch.int32)),
        ("token_id", torch.tensor([1, 2**40, 3])),
        ("tokens", torch.zeros(2, 3)),
        ("documents", torch.full((2, 8), 2**31, dtype=torch.int64)),
        ("roles", torch.full((2, 8), 99, dtype=torch.uint8)),
        ("document_names", torch.tensor(list(b'{"a": 1}'), dtype=torch.uint8)),
        ("document_names", torch.tensor(list(b"[" * 20), dtype=torch.uint8)),
    ],
)
def test_an_export_whose_arrays_do_not_fit_each_other_is_refused(tmp_path, name, value):
    from safetensors.torch import save_file

    ids = torch.arange(16, dtype=torch.int32).reshape(2, 8)
    whole = {"resid": torch.ones(3, 4), "context": torch.tensor([0, 0, 1]), "position": torch.tensor([1, 2, 1])}
    whole |= {"token_id": torch.tensor([1, 2, 9]), "tokens": ids, "documents": ids * 0, "roles": (ids * 0).to(torch.uint8)}
    save_file(whole, tmp_path / "x.safetensors")
    store = import_activations(tmp_path / "x.safetensors", tmp_path / "good")
    assert store.document_names == ["document 0"]
    save_file(whole | {name: value}, tmp_path / "x.safetensors")
    with pytest.raises(RecordingError, match=name):
        import_activations(tmp_path / "x.safetensors", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("form", ["safetensors", "sae_lens"])
def test_damaged_exports_are_refused_or_read_and_never_anything_else(store, tmp_path, form):
    to_safetensors(store, tmp_path / "out") if form == "safetensors" else to_sae_lens(store, "a", tmp_path / "out", window=50)
    rng = np.random.default_rng(0)
    files = sorted(path for path in (tmp_path / "out").iterdir() if form == "safetensors" or path.suffix == ".json")
    sound = {path: path.read_bytes() for path in files}
    refused = 0
    for number in range(12):
        path = files[number % len(files)]
        data = bytearray(sound[path])
        data[int(rng.integers(min(len(data), 600)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data if number % 4 else data[: int(rng.integers(len(data)))])
        try:
            import_activations(tmp_path / "out", tmp_path / f"back{number}")
        except RecordingError:
            refused += 1
        path.write_bytes(sound[path])
    assert refused > 2
