"""What pages keep of a pack between their runs."""

import numpy as np
from scope.app.serve import packs

from scope.features.face import Pack
from tests.features.toy_pack import make_toy_pack


def test_a_figure_is_made_again_for_other_latents_or_labels_and_only_then(tmp_path):
    make_toy_pack(tmp_path / "toy")
    store = Pack.open(tmp_path / "toy")
    made = []

    def shown(*latents: int) -> int:
        return packs.cached_recently(store, "points", np.array(latents), lambda: made.append(latents) or len(made))

    assert [shown(1, 2), shown(1, 2), shown(2), shown(1, 2), shown(2)] == [1, 1, 2, 1, 2]
    store.table = store.table.assign(label="another")
    assert [shown(1, 2), shown(1, 2)] == [3, 3]
    for latent in range(20):
        shown(latent)
    assert shown(1, 2) == len(made)  # not kept for ever
