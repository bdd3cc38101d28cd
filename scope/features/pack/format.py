"""The files of a pack, and the names and types of what they hold. `manifest` reads a pack's manifest, `write` writes packs.

manifest.json     schema, what made it, how every number was made, {file: size and sha256}
features.parquet  one row a latent
examples.h5       one chunk a latent, each with its own checksum: examples, their activations, the histogram
relations.h5      neighbours, co-firing, tokens, promoted and suppressed tokens
contexts.npy      token ids [n_contexts context]        documents.npy, documents.json   where each token came from
vocab.json.gz     the piece of every id, so that no tokenizer is needed to read the pack
README.txt        this, at length, for those who read a pack without this program
map.npy           (optional) a place on a flat map for each latent
firings.npy       (optional) positions of firings, drawn uniformly from all of a latent's [d_sae n]; -1 is an empty place
rules.parquet     (optional) of each latent the rule that best predicts its firing, with its scores; see RULES
health.json       (optional) the evaluation report, the certificate and the training curves
lookahead.json    (optional) which latents fire in a middle because of the suffix; `scope lookahead --pack` adds it
pictures.h5       (optional) small pictures of the contexts in which examples lie, and where in them latents fire; see PICTURES
notes.sqlite      (later) labels, notes and stars; the only file that is written after the pack was made
"""

SCHEMA = 1
N_BINS = 160
"""Bins of an activation histogram: 8 an octave, 20 octaves."""
GROUPS = ("top", "bands", "random", "near")
NO_BAND = 255
FILES = (
    "features.parquet",
    "examples.h5",
    "relations.h5",
    "contexts.npy",
    "documents.npy",
    "documents.json",
    "vocab.json.gz",
)
FIRINGS = "firings.npy"
"""An optional file; see above."""
RULES = {
    "rule": str,  # JSON: properties of a token and the values that they must have; see scope.features.labels.rules
    "words": str,  # the rule as a phrase
    "score": float,  # F1 of "fires exactly where the rule holds" on the half of the contexts that did not choose it
    "chosen": float,  # the same on the half that chose it
    "single_token": float,  # that of the best single token, scored like `score`
    "null": float,  # that of a rule chosen for as many firings at positions drawn uniformly
    "firings": int,  # sampled firings of the half that scores
}
"""The columns of rules.parquet, a row a latent in order of id; a latent without a rule has an empty one."""
RULES_FILE = "rules.parquet"

EXAMPLES = {
    "position": "i8",  # context * n_ctx + offset of the peak; -1 is an empty place
    "group": "u1",  # 0 empty, then 1 + index into GROUPS
    "band": "u1",
    "value": "f4",
    "acts": "f4",  # [d_sae places 2 * window + 1], the peak in the middle, zero outside the context
    "histogram": "u4",
    "band_edges": "f4",  # [d_sae n_bands + 1]
    "band_count": "i8",
    "band_mass": "f8",
}
RELATIONS = {
    "neighbour_id": "i4",
    "neighbour_cos": "f4",
    "opposite_id": "i4",
    "opposite_cos": "f4",
    "cofiring_id": "i4",
    "cofiring_p": "f4",
    "cofiring_lift": "f4",
    "token_id": "i4",  # most frequent first; -1 is an empty place
    "token_count": "i8",
    "token_sum": "f8",
    "promoted_id": "i4",
    "promoted_logit": "f4",
    "suppressed_id": "i4",
    "suppressed_logit": "f4",
    "measured_id": "i4",
    "measured_rise": "f4",  # rise of the probability, mean over prompts
    "logit_histogram": "u4",  # [d_sae 40] tokens by logit, in bins of equal width between logit_ends
    "logit_ends": "f4",  # [d_sae 2]
    "role_count": "i8",  # firings by role of the row; the manifest names the roles in order, with the rows of each
    "role_sum": "f8",  # summed activation of these firings
}
CONTROLS = {"position": "i8", "start": "i8", "latent": "i4"}
BY_ROLE = ("role_count", "role_sum")
"""Relations that only packs of rows with roles hold."""
LATER = ("logit_histogram", "logit_ends", "opposite_id", "opposite_cos", *BY_ROLE)
"""Relations that a pack may lack: earlier ones, and some kinds."""

PICTURES = {
    "file": "u1",  # [bytes] PNG or JPEG files of small pictures, one after another
    "file_start": "i8",  # [pictures + 1] where each begins
    "size": "i4",  # [pictures 2] width and height in pixels of the picture as it was, upright
    "of_context": "i4",  # [n_contexts] the picture of each context; -1 where no example lies in it
    "patch_start": "i8",  # [d_sae * places + 1] in patch and patch_act, of example latent * places + place of examples.h5
    "patch": "i4",  # the patches on which the latent fires in the example's picture, row by row from 0; of a row of text too
    "patch_act": "f4",  # its activation there
}
"""The datasets of pictures.h5. The manifest says under "pictures" how many patches a picture has, and their size: the patches
stand first in a context, so the peak of an example is patch `position % n_ctx` where that is below grid * grid, and else a
row of text. A patch is patch_size / picture_size of the width and of the height of a picture, since pictures are resized to a
square."""
