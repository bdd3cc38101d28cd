"""The folder of a training: older descriptions mean what they meant, and what is not a training is left alone."""

import json
from pathlib import Path

import pytest

from scope.errors import ConfigError
from scope.training.folder import RUN
from scope.training.trainer import CHECKPOINT, train_all
from tests.training.planted import SITES, TwoSites, grid, same
from tests.training.test_resume import Stop, run, stopped


def forget(folder: Path, *names: str) -> None:
    """Make the description that of a time in which the dictionary had no such settings."""
    described = json.loads((folder / RUN).read_text())
    for name in names:
        described["dictionary"].pop(name)
    (folder / RUN).write_text(json.dumps(described))


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_a_run_from_before_rows_could_be_free_goes_on_with_unit_rows_only_and_to_the_same_bits(tmp_path, kind):
    before = {"decoder": "unit", "aux_weight": 1 / 32}
    whole = run(tmp_path / "whole", kind, **before)
    stopped(tmp_path / "old", kind, **before)
    forget(tmp_path / "old", "decoder", "start_norm")
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "old", kind)
    for line in ("decoder: unit then, free now", "aux_weight: 0.03125 then, 1.0 now"):
        assert f"dictionary.{line}" in str(refused.value)
    with pytest.raises(ConfigError, match="decoder: unit then, free now"):
        run(tmp_path / "old", kind, aux_weight=1 / 32)
    assert same(run(tmp_path / "old", kind, **before), whole)


def test_a_jumprelu_run_from_before_latents_were_revived_goes_on_without_revival_only(tmp_path):
    whole = run(tmp_path / "whole", "jumprelu", revive_after=None)
    stopped(tmp_path / "old", "jumprelu", revive_after=None)
    forget(tmp_path / "old", "revive_after")
    with pytest.raises(ConfigError, match="revive_after: None then, 50000 now"):
        run(tmp_path / "old", "jumprelu", revive_after=50_000)
    assert same(run(tmp_path / "old", "jumprelu", revive_after=None), whole)


def test_of_another_kind_only_the_kind_is_named(tmp_path):
    stopped(tmp_path, "jumprelu")
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, "topk")
    lines = str(refused.value).splitlines()
    assert [line.strip() for line in lines[1:-1]] == ["kind: jumprelu then, topk now"]
    assert "--out" in lines[-1]
    assert (tmp_path / CHECKPOINT).exists()


def test_a_checkpoint_without_the_settings_of_its_training_is_not_gone_on_with(tmp_path):
    def stop(done, total, numbers):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        train_all(grid(tmp_path), TwoSites(), tmp_path, stop)
    (tmp_path / "b" / RUN).unlink()
    with pytest.raises(ConfigError, match="settings are gone"):
        train_all(grid(tmp_path), TwoSites(), tmp_path)
    assert (tmp_path / CHECKPOINT).exists()


def pack(folder: Path) -> set[Path]:
    """A folder that holds what another command wrote."""
    folder.mkdir(parents=True)
    for name in ("manifest.json", "features.parquet"):
        (folder / name).write_text("{}")
    return set(folder.rglob("*"))


def test_a_folder_that_holds_what_no_training_made_is_refused_and_left_as_it_is(tmp_path):
    before = pack(tmp_path / "pack")
    with pytest.raises(ConfigError, match=r"(?s)pack holds .*features\.parquet, manifest\.json.*new folder"):
        run(tmp_path / "pack", "jumprelu")
    assert set((tmp_path / "pack").rglob("*")) == before


def test_a_checkpoint_without_its_description_is_not_gone_on_with(tmp_path):
    stopped(tmp_path, "jumprelu")
    (tmp_path / RUN).unlink()
    with pytest.raises(ConfigError, match=r"checkpoint\.safetensors"):
        run(tmp_path, "jumprelu", target_l0=5.0)


def test_many_are_not_put_into_a_folder_of_something_else(tmp_path):
    before = pack(tmp_path / "pack")
    with pytest.raises(ConfigError, match=r"(?s)pack holds .*features\.parquet.*new folder"):
        train_all(grid(tmp_path / "pack"), TwoSites(), tmp_path / "pack")
    assert set((tmp_path / "pack").rglob("*")) == before
    pack(tmp_path / "many" / "b")  # in the place of one of them
    with pytest.raises(ConfigError, match=r"b holds what no training made: features\.parquet"):
        train_all(grid(tmp_path / "many"), TwoSites(), tmp_path / "many")
    one = grid(tmp_path / "one")[0]
    train_all([one], TwoSites(SITES[:1]), tmp_path / "one" / "a")
    with pytest.raises(ConfigError, match="holds the training of one dictionary"):
        train_all(grid(tmp_path / "one" / "a"), TwoSites(), tmp_path / "one" / "a")


def test_a_run_that_ended_before_its_first_step_is_begun_again_in_its_folder(tmp_path):
    """The folder, its lock, what a board wrote: nothing that could be lost."""
    for name in ("alone", "many", "many/a", "many/b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    (tmp_path / "alone" / "tensorboard").mkdir()
    run(tmp_path / "alone", "topk")
    jobs = grid(tmp_path / "many")
    assert len(train_all(jobs, TwoSites(), tmp_path / "many")) == 3
    assert len(train_all(grid(tmp_path / "many"), TwoSites(), tmp_path / "many")) == 3  # and again, finished
