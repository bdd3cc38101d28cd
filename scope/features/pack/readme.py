"""The README.txt of every pack: how to read it without this program."""

TEXT = """\
A feature pack, written by scope: what is known of each latent of a dictionary.

To browse it:   scope app THIS_FOLDER
In Python:      from scope import Pack; Pack.open("THIS_FOLDER")[1208]
Neither needs the model, a tokenizer, a GPU or a network. The files are ordinary ones:

manifest.json      schema (1), model, dictionary, text, how every number was made, and of each file the size and sha256.
                   A reader refuses another schema. Relations may be added within one; readers pass over what they do not know.
features.parquet   a row a latent, in order of id. Columns: scope/features/pack/table.py, or:
                   count, density (count / tokens), mean, max, p50 p90 p99, cv, skew, kurtosis of the activation when it fires;
                   top_token, top_token_share, n_tokens, n_tokens_half; promotes, suppresses (by weights, through the final
                   norm's gain), logit_std, logit_skew, logit_kurtosis; out_score, out_kl (measured); nearest, nearest_cos,
                   dec_norm, enc_dec_cos; label, label_source, label_score; flags (dead, dense, rare, single-token, duplicate,
                   output), comma separated.
examples.h5        HDF5, one chunk a latent, gzip, each chunk with its own checksum (fletcher32): a damaged chunk costs one
                   latent's examples and nothing else. [d_sae places ...]:
                   position   context * n_ctx + offset of the peak in contexts.npy; -1 where a place is empty
                   group      0 empty, 1 top, 2 bands, 3 random, 4 near misses       band  0 the weakest, 255 none
                   value      activation at the peak       acts  at the peak's surroundings, peak in the middle
                   histogram  160 bins, 8 an octave; bin k begins at the float32 of bits (low + k) << 20, low in the manifest
                   band_edges, band_count, band_mass
relations.h5       [d_sae k], -1 where a place is empty: neighbour_id/cos, opposite_id/cos, cofiring_id/p/lift,
                   token_id/count/sum, promoted_id/logit, suppressed_id/logit, measured_id/rise,
                   logit_histogram with logit_ends; role_count/sum: firings and summed activation by role of the row, the
                   roles and the rows of each in the manifest under "roles";
                   token_totals [d_vocab]: how often each token stood where latents could fire;
                   control_position [n]: middles of windows of text, control_half tokens to either side; in window i fire
                   control_latent[control_start[i] : control_start[i + 1]] and no other latents.
contexts.npy       token ids [n_contexts n_ctx]          vocab.json.gz   the piece of every id
documents.npy      index into documents.json for each token, -1 unknown
map.npy            (optional) [d_sae 2] a place on a flat map of the decoder directions; what it is worth stands in the
                   manifest under "map"
firings.npy        (optional) [d_sae n] positions of firings, drawn uniformly from all of a latent's; -1 is an empty place
rules.parquet      (optional) a row a latent: rule (JSON: a token's properties, and values that they must have together), words;
                   score: F1 on the half of the contexts that did not choose it; chosen, single_token, null, firings
health.json        (optional) evaluation, certificate, training curve
lookahead.json     (optional) which latents fire in the middle of an infilling example because of the suffix
pictures.h5        (optional) file, file_start [n + 1]: PNG and JPEG files of small pictures, one after another; size [n 2] of
                   the pictures as they were; of_context [n_contexts]: the picture of a context, -1 none; of example
                   e = latent * places + place of examples.h5, patch[patch_start[e] : patch_start[e + 1]] are the patches, row
                   by row, on which the latent fires in its picture, patch_act its activations there; "pictures" in the
                   manifest says how many patches a side has
notes.sqlite       (later) labels with source, score and time; notes, stars, guesses. The only file that changes.
"""
