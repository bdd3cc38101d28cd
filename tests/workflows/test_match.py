"""Where `scope.match` saves what it found."""

import numpy as np

from scope.features.compare.partners import Match
from scope.workflows.match import place_beside


def test_matches_with_two_saes_of_one_name_are_two_files(tmp_path):
    a, b, other = tmp_path / "demo", tmp_path / "one" / "lab", tmp_path / "two" / "lab"
    (a / "pack").mkdir(parents=True)
    (a / "pack" / "features.parquet").touch()
    row, share = np.zeros(1, dtype=int), {"threshold": 0.5, "share": 0.0, "share_by_chance": 0.0, "ceiling": None}
    columns = {"latents": row, "partners": row, "correlation": row / 2, "by_chance": row / 2, "mutual": row > 0}
    result = Match(**columns, **share, words=1, documents=2, provenance={"b": {"path": str(b)}})
    file = place_beside(a, b)
    assert (file.parent, file.name) == (a / "pack.matches", "lab.json")
    result.save(file)
    assert place_beside(a, b) == file
    assert place_beside(a, other) not in (file, None)
    assert place_beside(a, other).name.startswith("lab-")
