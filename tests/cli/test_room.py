"""Models larger than memory on the command line: refused with the way out, and recorded with --streamed."""

from pathlib import Path

import pytest
import torch
from scope.activations.read.store import ActivationStore

from scope.cli.main import run
from scope.errors import ConfigError, PackError
from scope.features.pack.write import refuse_foreign
from scope.models.checkpoints import BUNDLED
from scope.steering.compare.json_files import runs_folders
from scope.workflows.harvest import refuse_without_room


def test_weights_that_memory_does_not_hold_are_refused_with_the_way_out():
    weights = 5_831_424 * 4
    refuse_without_room("bundled", "float32", free=weights + 2**20)
    with pytest.raises(ConfigError, match=r"take 0\.0 GB as float32(.|\n)*--streamed"):
        refuse_without_room("bundled", "float32", free=weights // 2)
    refuse_without_room(str(BUNDLED), "bfloat16", free=weights // 2 + 2**20)


@pytest.mark.parametrize("model", ["bundled-paligemma", "bundled-colpali"])
def test_the_trunk_that_a_small_model_takes_from_another_counts_too(model):
    with pytest.raises(ConfigError, match=r"as float32(.|\n)*bfloat16 for half of it\.$"):
        refuse_without_room(model, "float32", free=5_831_424 * 4)
    with pytest.raises(ConfigError, match="is not streamed"):
        refuse_without_room(model, "bfloat16", free=5_831_424 * 2)
    refuse_without_room(model, "float32", free=5_831_424 * 4 + 2**23)


def test_a_streamed_recording_holds_what_the_resident_one_does(tmp_path):
    given = "--site blocks.0.hook_resid_post --tokens 1024 --context 64 --dtype float32 --batch-contexts 8".split()
    for name, more in {"resident": [], "streamed": ["--streamed"]}.items():
        assert run(["harvest", *given, "--out", str(tmp_path / name), *more]) == 0
    a, b = (ActivationStore.open(tmp_path / name) for name in ("resident", "streamed"))
    assert a.manifest.model == b.manifest.model
    x, y = (store["blocks.0.hook_resid_post"][:] for store in (a, b))
    assert len(x) > 1000
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "command",
    [
        "steer --latent 3 --json OUT",
        "steer --latent 3 --sweep 1 2 --plot OUT",
        "evaluate nothing --json OUT",
        "attribute --prompt dog --csv OUT",
        "match nothing nothing --csv OUT",
    ],
)
@pytest.mark.parametrize("place", ["folder", "a file/out"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys, command, place):
    """Nothing that the commands read is there, and yet they speak of the output: they looked at that first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a file").touch()
    assert run([part.replace("OUT", place) for part in command.split()]) == 2
    assert place in capsys.readouterr().err


def test_a_pack_may_be_called_by_the_dot_of_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert runs_folders(".")[1] == runs_folders(tmp_path)[1]
    assert run(["export", ".", "--to", "csv"]) == 2
    assert "is no feature pack" in capsys.readouterr().err
    with pytest.raises(PackError, match="the one you are in"):
        refuse_foreign(Path())
