"""Model cards of the small models of pictures: what each is, how it was made, every figure as measured beside chance."""

from typing import Any

from scope.pretrain.pictures.colpali import ColPaliRecipe
from scope.pretrain.pictures.paligemma import N_NEW, PaliGemmaRecipe
from scope.pretrain.pictures.paligemma_scores import SHORT
from scope.pretrain.pictures.siglip import SiglipRecipe

_SCENES = (
    "Scenes are drawn by scope/activations/scenes: 48 x 48 pixels, one to three objects of 6 colours, 6 shapes, 2 sizes and 9 "
    "places on a noisy grey. Four pairs of colour and shape (green triangle, red ring, blue cross, yellow square) occur in no "
    "picture of the training; they are the held-out pairs. Tests use scenes of other seeds."
)
_LIMITS = (
    "A model to study, not to use: it knows the synthetic world alone, and says nothing sensible about any other picture. One "
    "training run with one seed."
)


def _front(title: str, tag: str, pipeline: str) -> str:
    head = f"language: en\nlibrary_name: transformers\npipeline_tag: {pipeline}\ntags: [{tag}, interpretability]"
    return f"---\n{head}\n---\n# {title}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def siglip_card(recipe: SiglipRecipe, scores: dict[str, Any]) -> str:
    """README.md of a SigLIP of scenes."""
    shots = scores["zero_shot"]
    factors = list(shots["chance"])
    table = _table(["", *factors], [[name, *(_percent(row[f]) for f in factors)] for name, row in shots.items()])
    search = scores["search"]
    bound = "It does not bind" if scores["binding"] < 0.6 else "Binding"
    return f"""{_front("bundled-siglip: a SigLIP of synthetic scenes", "siglip", "zero-shot-image-classification")}

A vision tower (4 layers, width {recipe.width}, patches of 8 pixels) and a text tower (2 layers, width
{recipe.text_width}) with the architecture of SigLIP, trained from nothing. Weights are stored in bfloat16 with the
names of the hub; `transformers` and `scope.load_model` read the folder alike. It shares neither weights nor data with
the released SigLIP.

## Training

`scope pretrain --organism siglip`: {recipe.steps} steps of {recipe.batch} pictures with SigLIP's sigmoid loss, whose
labels come from the world: a caption is true of every scene that it fits. The first {recipe.aligned_steps} steps show
crops of 24 x 24 pixels with an object in the middle, the steps until {recipe.crop_steps} crops with an object
anywhere, at the positions that they have in the whole picture; then whole scenes, with half of the captions again
with one fact changed. {_percent(recipe.one_fact)} of the captions name one fact alone. Muon (lr {recipe.matrix_lr})
on matrices, AdamW (lr {recipe.other_lr}) on the rest, seed {recipe.seed}.

{_SCENES}

## Measured

Zero-shot: of {scores["n"]} scenes with one object, how often the right caption among all values of a factor fits best
("a circle", "a red shape", "a shape at the left"); the last column chooses among all 36 pairs.

{table}

Captions of scenes of one to three objects, searched among {scores["n"]} pictures: the best picture fits in
{_percent(search["recall_at_1"])} of the cases, a random one in {search["random"]:.1%}.

**{bound}.** Of scenes with two objects, the true caption scores above the same caption with the two colours exchanged in
{_percent(scores["binding"])} of the cases; chance is 50 %.

## Limits

{_LIMITS} Held-out pairs are the measure of composition.
"""


def paligemma_card(recipe: PaliGemmaRecipe, scores: dict[str, Any]) -> str:
    """README.md of a PaliGemma of scenes."""
    rows = []
    for name, by_kind in scores["objects"].items():
        rows.append([name, *(f"{by_kind[k]['right']:.2f}" if k in by_kind else "" for k in SHORT)])
    one = scores["objects"]["1"]
    rows.append(["commonest answer, 1 object", *(f"{one[k]['commonest']:.2f}" if k in one else "" for k in SHORT)])
    table = _table(["objects in the scene", *SHORT], rows)
    count = sum(scores["objects"][n]["count"]["right"] for n in "123") / 3
    exists = (
        "answered no better than by chance" if abs(one["exists"]["right"] - 0.5) < 0.1 else "answered better than by chance"
    )
    held = scores["objects"]["1, held-out pair"]["shape"]["right"]
    return f"""{_front("bundled-paligemma: a PaliGemma 2 of synthetic scenes", "paligemma", "image-text-to-text")}

The vision tower of bundled-siglip, a linear projector, and the bundled Gemma 2 of scope with a LoRA adapter (rank
{recipe.rank}) and {N_NEW:,} new rows of the embedding, for <loc0000> to <loc1023>, <seg000> to <seg127> and <image>.
The folder holds tower, projector and adapter; the Gemma's own weights are those of the bundled model, which
`scope.load_model("bundled-paligemma")` puts together. `scope.pretrain.pictures.folders.write_whole(model, folder)`
writes the whole as a checkpoint that transformers reads.

## Training

`scope pretrain --organism paligemma`: {recipe.steps} steps of {recipe.batch} questions, AdamW (lr {recipe.fast_lr}
for the adapter, {recipe.other_lr} for projector and rows), seed {recipe.seed}; tower and Gemma stay as they are. The
first {recipe.alone:.0%} of the steps show scenes of one object, the rest one, one, two or three. Answers begin with a
space, with which most are one token.

{_SCENES}

## Measured

Share of right answers of the folder as it lies here, greedily, {scores["n_scenes"]} scenes a row and one question of
each kind for each scene that has one ("exists" has as many yes as no). "Pictures shuffled" asks each question of
another scene's picture.

{table}

Captions of scenes with one object, every word right: {_percent(scores["captions_exact"])}; `detect` boxes with more
than half of intersection over union: {_percent(scores["boxes_over_half"])} ({scores["n_captions_and_boxes"]} of
each). The count is right in {_percent(count)} of all scenes of the three rows together, where always the same answer is
right in a third. "Is there a ..." is {exists}.

**Binding.** With two or three objects the questions name one of them, and the answers fall off towards what any of the
objects has: the model reads from the patches what is in the picture, less so what belongs together. Of a held-out pair
it tells the colour and the place, and the shape in {_percent(held)} of the cases.

## Limits

{_LIMITS}
"""


def colpali_card(recipe: ColPaliRecipe, scores: dict[str, Any]) -> str:
    """README.md of a ColPali of synthetic pages."""
    rows = [
        [name, str(r["n"]), f"{r['pages']:.0f}", f"{r['ndcg5']:.2f}", _percent(r["first_answers"]), f"{r['untrained']:.2f}",
         f"{r['random']:.2f}"]
        for name, r in scores["queries"].items()
    ]  # fmt: skip
    steps = recipe.steps * recipe.reading
    head = ["query", "queries", "pages that answer", "nDCG@5", "first page answers", "nDCG@5 untrained", "nDCG@5 random order"]
    return f"""{_front("bundled-colpali: a ColPali of synthetic pages", "colpali", "visual-document-retrieval")}

bundled-paligemma trained on as a ColPali: its tower with a table of positions for pages of 64 x 64 pixels, its
projector, the bundled Gemma 2 with a LoRA adapter (rank {recipe.rank}), and a linear layer to vectors of
{recipe.d_embed} numbers. The folder holds what differs from the bundled Gemma 2, whose weights are not stored again;
`scope.load_model("bundled-colpali")` puts them together.

## Training

`scope pretrain --organism colpali`. First tower and projector learn to read: {steps} steps on cells alone, {steps} on whole
pages; the rows of a cell shall point where the bundled Gemma's embeddings of its word, or of its icon's colour and shape,
point. Then {recipe.steps} steps of {recipe.batch} pages with a query of one or two of their items each
({_percent(recipe.words)} words): cross-entropy over the pages of the batch, other pages that answer too masked out, and for
each word over all cells of the batch. Half of the pages of a batch are the other half with the colours of their icons
exchanged. Of the ColPali's own steps: Muon (lr
{recipe.matrix_lr}) on the tower's matrices, AdamW (lr {recipe.other_lr}) on the rest, seed {recipe.seed}. Pages are
drawn by scope/activations/scenes/pages.py: eight cells with icons (a colour and a shape) or short words; icons of the
four held-out pairs occur in no page of the training.

## Measured

{scores["n_pages"]} pages that were not trained on, every page indexed; which page answers is known from its cells.

{_table(head, rows)}

"Untrained" is the same assembly before training. An earlier recipe, without the lessons in reading and with words as 10 % of
the items of queries, reached 0.10 on words: MaxSim alone teaches a tower to read too slowly. With exchanged pages from step
200 or 100 on, instead of from the first, held-out pairs reached 0.61 and 0.82 (same start, same seed).

## Limits

{_LIMITS} Words that are on no page of the training cannot be found.
"""
