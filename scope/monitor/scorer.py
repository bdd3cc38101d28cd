"""Scores texts with the monitor of this folder. It needs torch, transformers and safetensors, and nothing else.

    python score.py "a text" "another text"           python score.py --file texts.txt --model FOLDER_OR_HUB_ID
    from score import Scorer; Scorer().score("a text")["alarm"]

It runs the model only up to the monitor's site, and first scores a known text: other weights than the monitor's are refused.
"""

import argparse
import contextlib
import json
from pathlib import Path

import torch


def token_scores(acts: torch.Tensor, weights: dict[str, torch.Tensor], top_k: int | None = None) -> torch.Tensor:
    """Activations [tok d_in] -> scores [tok column]: a weighted sum of them or, where there is an encoder, of SAE latents."""
    x = acts.float()
    if "W_enc" in weights:
        pre = x @ weights["W_enc"] + weights["b_enc"]
        if top_k:
            values, ids = pre.topk(top_k, dim=-1)
            x = torch.zeros_like(pre).scatter(-1, ids, torch.relu(values))[:, weights["latents"].long()]
        elif "r_mag" in weights:
            x = torch.relu(x @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"]) * (pre > 0)
        else:
            x = torch.relu(pre) * (pre > weights["threshold"])
    return x @ weights["weight"] + weights["bias"]


def aggregate(scores: torch.Tensor, how: str) -> torch.Tensor:
    """Scores [tok column] -> one score a column: the largest, the mean, or the last token's."""
    return scores.amax(0) if how == "max" else scores.mean(0) if how == "mean" else scores[-1]


def _no_model(why: str) -> SystemExit:
    return SystemExit(f"{why}\n  Give the model that the monitor was made for: --model FOLDER_OR_HUB_ID, or Scorer(model=...).")


class _PastSite(Exception):
    """The site was passed; the layers above it need not run."""


class Scorer:
    """The monitor of a folder, on a transformers model."""

    def __init__(self, folder: str | Path = Path(__file__).parent, model: str | None = None, device: str = "cpu"):
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
        from transformers.utils import cached_file

        self.monitor = json.loads((Path(folder) / "monitor.json").read_text(encoding="utf-8"))
        if self.monitor.get("hook") is None:
            raise SystemExit(f"No module of transformers computes {self.monitor['site']}; use: scope monitor run {folder}")
        self.weights = {k: v.to(device) for k, v in load_file(Path(folder) / "weights.safetensors").items()}
        known = self.monitor["model"]
        name, of = model or known["model"], {} if model else {"revision": known.get("revision") or "main"}
        dtype = getattr(torch, known.get("dtype") or "float32")
        names = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
        if model is None and name.startswith("bundled") and not Path(name).exists():
            place = f"scope/models/{name.partition('+')[0].replace('-', '_')}"
            raise _no_model(f"{name} is a small model that comes with scope, in its folder {place}, and lies on no hub.")
        try:
            vocabulary = cached_file(name, "tokenizer.json", **of)
        except OSError as error:
            raise _no_model(f"{name} cannot be read: {str(error).splitlines()[0]}") from None
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=vocabulary, **names)
        config = AutoConfig.from_pretrained(name, **of)
        if self.monitor.get("sliding_window"):
            config.sliding_window = self.monitor["sliding_window"]
        loaded = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, attn_implementation="eager", **of)
        if known.get("adapter") and not model:
            loaded.load_adapter(known["adapter"])  # needs peft; or merge the adapter, and name the result as `model`
        self.decoder = getattr(loaded.model, "language_model", loaded.model).to(device).eval()
        module = self.decoder.get_submodule(self.monitor["hook"]["module"])
        if self.monitor["hook"]["side"] == "output":
            module.register_forward_hook(lambda module, args, output: self._keep(output))
        else:
            module.register_forward_pre_hook(
                lambda module, args, kwargs: self._keep((*args, *kwargs.values())), with_kwargs=True
            )
        near = 1e-3 if dtype == torch.float32 else 0.05
        for check in self.monitor["check"]:
            score = self.score(check["text"])["score"]
            if not abs(score - check["score"]) <= near * max(1.0, abs(check["score"])):
                raise SystemExit(
                    f"{name} is not the model of this monitor: a known text has the score {score:.6g}, and should have "
                    f"{check['score']:.6g}."
                )

    def _keep(self, value) -> None:
        self.acts = value[0] if isinstance(value, tuple) else value
        raise _PastSite

    @torch.no_grad()
    def score(self, text: str) -> dict:
        """Score, threshold, alarm, the token that scored highest, and the score of each token that counts."""
        m = self.monitor
        if m["chat"]:
            turns = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=m["chat_template"], add_generation_prompt=True, tokenize=False
            )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ([] if ids[:1] == [m["bos"]] else [m["bos"]]) + list(ids)
        ids = ids[: m["context"]]
        with contextlib.suppress(_PastSite):
            self.decoder(input_ids=torch.tensor([ids], device=self.weights["weight"].device), use_cache=False)
        counted = [i for i, token in enumerate(ids) if i and token not in m["excluded_ids"]]
        if not counted:
            return {"score": None, "threshold": m["threshold"], "alarm": None, "token": None, "tokens": []}
        scores = token_scores(self.acts[0, counted], self.weights, m.get("top_k"))
        score, top = float(aggregate(scores, m["aggregation"])[0]), int(scores[:, 0].argmax())
        tokens = [(self.tokenizer.decode([ids[i]]), float(s)) for i, s in zip(counted, scores[:, 0], strict=True)]
        return {
            "score": score,
            "threshold": m["threshold"],
            "alarm": score > m["threshold"],
            "token": tokens[top][0],
            "tokens": tokens,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--file", type=Path, help="more texts, one a line")
    parser.add_argument("--model", help="folder or hub id of the model, if not where the monitor was made")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    if not flags.texts and not flags.file:
        parser.error('there is no text to score: python score.py "a text", or --file texts.txt')
    scorer = Scorer(model=flags.model, device=flags.device)
    lines = flags.file.read_text(encoding="utf-8").splitlines() if flags.file else []
    for each in [*flags.texts, *lines]:
        row = scorer.score(each)
        print(json.dumps({key: row[key] for key in ("score", "threshold", "alarm", "token")} | {"text": each}))
