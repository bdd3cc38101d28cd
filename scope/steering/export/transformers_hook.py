"""Applies the intervention in this folder to a transformers model. Needs torch, transformers and safetensors, nothing else.

    from hook import steer                                   # this file, beside intervention.json and vectors.safetensors
    model = AutoModelForCausalLM.from_pretrained(NAME, dtype="float32", attn_implementation="eager")
    with steer(model):
        model.generate(**tokenizer(PROMPT, return_tensors="pt"), do_sample=False)

`python hook.py [MODEL [ADAPTER]]` writes the recorded texts again, greedily, and compares them token by token; it exits with 1
if any differs. MODEL is a folder or hub id, by default the one that the texts were recorded with; ADAPTER one of PEFT.
"""

import hashlib
import json
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

FORMULAS = {  # how much of the vector is added at a position; r is what is read there, a the amount
    "add": lambda r, a: torch.full_like(r, a),
    "clamp": lambda r, a: a - r,
    "at least": lambda r, a: (a - r).clamp(min=0),
    "ablate": lambda r, a: -r,
    "project out": lambda r, a: -r,
    "scale": lambda r, a: (a - 1) * r,
    "cap": lambda r, a: -(r - a).clamp(min=0),
    "floor": lambda r, a: (a - r).clamp(min=0),
}


@contextmanager
def steer(model, folder=Path(__file__).parent):
    """Within the block every run of the model is edited: whole texts, generation with and without a cache, padded batches.
    Texts begin with <bos>, as the tokenizers of Gemma make them."""
    from safetensors.torch import load_file

    about = json.loads((Path(folder) / "intervention.json").read_text(encoding="utf-8"))["hook"]
    vectors = load_file(Path(folder) / "vectors.safetensors")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    stack = inner.model if hasattr(inner.model, "layers") else inner.model.language_model
    embedding = model.get_input_embeddings().weight
    if first_rows_sha256(embedding) != about["embedding_sha256"]:
        raise ValueError(f"This model has other embeddings than the one that the edits were made for, {about['model']}.")
    run, places = SimpleNamespace(seen=None, lengths=None), {}
    for number, edit in enumerate(about["edits"]):
        own = {name.split(".", 1)[1]: v.to(embedding.device) for name, v in vectors.items() if name.startswith(f"{number}.")}
        places.setdefault((edit["module"], edit["side"]), []).append((edit, own))
    with ExitStack() as installed:
        follow = model.register_forward_pre_hook(lambda m, args, kwargs: _follow(run, args, kwargs), with_kwargs=True)
        installed.callback(follow.remove)
        for (name, side), edits in places.items():
            module, change = stack.get_submodule(name), _changing(edits, run, about)
            if side == "input":
                hook = module.register_forward_pre_hook(lambda m, args, change=change: (change(args[0]), *args[1:]))
            else:
                hook = module.register_forward_hook(
                    lambda m, args, out, change=change: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
                )
            installed.callback(hook.remove)
        yield model


def first_rows_sha256(embedding):
    """A hash of the embedding's first 64 rows in float32, which tells one model from another."""
    return hashlib.sha256(embedding[:64].detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _changing(edits, run, about):
    """The function of one place: all its edits read the same x, and their sum is added once."""
    write = torch.stack([vectors["vector"] for _, vectors in edits])

    @torch.no_grad()
    def change(x):
        stream, amounts = x.float(), []
        for edit, vectors in edits:
            r = _read(edit["reads"], stream, vectors)
            mask = _positions(edit["positions"], run, about)
            if edit["above"] is not None:
                condition = {name.removeprefix("when."): v for name, v in vectors.items() if name.startswith("when.")}
                mask = mask & (_read("activation", stream, condition) > edit["above"])
            amounts.append(torch.where(mask, FORMULAS[edit["does"]](r, edit["amount"]), 0.0))
        return (stream + torch.stack(amounts, -1) @ write).to(x.dtype)

    return change


def _read(what, x, vectors):
    if what == "activation":  # of a latent: relu(pre), zero unless it exceeds its threshold
        pre = x @ vectors["encoder"] + vectors["bias"]
        return torch.relu(pre) * (pre > vectors["threshold"])
    if what == "projection":
        return x @ (vectors["vector"] / vectors["vector"].square().sum())
    return x.new_zeros(x.shape[:-1])


def _follow(run, args, kwargs):
    """Keeps tokens, absolute positions and the lengths of prompts: what the first run of a generation holds is the prompt."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None:
        raise ValueError("The model was called without input_ids, so the place of its <bos> is unknown.")
    cache, mask, width = kwargs.get("past_key_values"), kwargs.get("attention_mask"), tokens.shape[1]
    if mask is None or mask.dim() != 2:
        past = cache.get_seq_length() if cache is not None else 0
        mask = torch.ones(len(tokens), past + width, dtype=torch.long, device=tokens.device)
    run.tokens, run.real = tokens, mask[:, -width:].bool()
    run.positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -width:]
    if mask.shape[1] == width:
        goes_on = run.seen is not None and width == run.seen.shape[1] + 1 and torch.equal(tokens[:, :-1], run.seen)
        if not goes_on:  # without a cache every step brings the whole text again
            run.lengths = mask.sum(1)
        run.seen = tokens


def _positions(rule, run, about):
    kind, _, start = rule.partition(":")
    at, lengths = run.positions, run.lengths[:, None]
    chosen = run.real & ((at < lengths) | (run.tokens != about["eos"]))
    if kind != "all":
        chosen &= run.tokens != about["bos"]
    if kind == "content":
        chosen &= ~torch.isin(run.tokens, torch.tensor(about["special"], device=run.tokens.device))
    rules = {
        "prompt": at < lengths,
        "generated": at >= lengths,
        "last_prompt": at == lengths - 1,
        "from": at >= int(start or 0),
    }
    return chosen & rules.get(kind, True)


def reproduce(name=None, adapter=None, folder=Path(__file__).parent):
    """Write the recorded texts again, print what is the same, and return whether all of it is."""
    from transformers import AutoModelForCausalLM

    hook = json.loads((Path(folder) / "intervention.json").read_text(encoding="utf-8"))["hook"]
    texts = [json.loads(line) for line in (Path(folder) / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    if name is None and "/" not in hook["model"].removeprefix("./"):
        raise SystemExit(
            f"The texts were recorded with {hook['model']}. Give its folder or hub id: python hook.py MODEL [ADAPTER]"
        )
    revision = {} if name or not hook["revision"] else {"revision": hook["revision"]}
    kind = getattr(torch, hook["dtype"])
    settings = {"dtype": kind, "attn_implementation": "eager"} | revision
    try:
        model = AutoModelForCausalLM.from_pretrained(name or hook["model"], **settings)
    except OSError as error:
        why = f"{name or hook['model']} cannot be read: {str(error).splitlines()[0]}"
        raise SystemExit(f"{why}\n  Give the model's folder or hub id: python hook.py MODEL [ADAPTER]") from None
    if adapter or hook["adapter"]:
        model.load_adapter(adapter or hook["adapter"])
    model.eval()
    same = True
    for text in texts:
        ids = torch.tensor([text["prompt_ids"]])
        settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": hook["ends"]}
        settings |= {"max_new_tokens": text["max_new_tokens"], "pad_token_id": hook["pad"]}
        for condition in ("plain", "steered"):
            with steer(model, folder) if condition == "steered" else ExitStack():
                new = model.generate(ids, **settings)[0, ids.shape[1] :].tolist()
            new = new[: next((i for i, token in enumerate(new) if token in hook["ends"]), len(new))]
            recorded = text[condition]["ids"]
            equal = next((i for i, (a, b) in enumerate(zip(new, recorded)) if a != b), min(len(new), len(recorded)))  # noqa: B905
            differs = equal < max(len(new), len(recorded))
            lead = f"; the recorded tokens led by {text[condition]['lead']:.2g} logits at least" if differs else ""
            print(f"{condition:8} {equal} of {len(recorded)} tokens are the same{lead}")
            same &= not differs
    print("The texts are the same, token by token." if same else "The texts differ.")
    return same


if __name__ == "__main__":
    sys.exit(0 if reproduce(*sys.argv[1:3]) else 1)
