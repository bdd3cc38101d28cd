"""`Moderator`: judges texts by policies. P(Yes) is the softmax over exactly the two logits of Yes and No after the prompt."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from scope.models.face import LanguageModel
from scope.moderation.policies import ModerationError, Policy, find_policies
from scope.moderation.prompt import Item, answer_tokens, prompt_ids
from scope.moderation.verdicts import Moderation, Verdict
from scope.progress import OnProgress


class Moderator:
    """A model that answers Yes or No to whether a text violates a policy.

    `template` is used instead of the checkpoint's own; see `scope.moderation.prompt.SHIELDGEMMA_TEMPLATE`.

    Raises:
        ModerationError: the tokenizer splits Yes or No.
    """

    def __init__(self, model: LanguageModel, template: str | None = None):
        self.model, self.template = model, template
        self.yes, self.no = answer_tokens(model.words)

    def judge(
        self,
        items: Sequence[Item],
        policies: str | Policy | Sequence[str | Policy],
        batch: int = 8,
        on_progress: OnProgress | None = None,
    ) -> Moderation:
        """A verdict for every text and policy. Prompts of like length share a batch of at most `batch`; padding stands on the
        right, where no token sees it.

        Raises:
            ModerationError: no texts, an unknown policy, an empty text, a text too long, a checkpoint without a template.
        """
        if not items:
            raise ModerationError("There are no texts. Give at least one.")
        chosen = find_policies(policies)
        asked = [self._ask(i, item, policy) for i, item in enumerate(items) for policy in chosen]
        verdicts = [verdict for _, verdict in asked]
        order = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))
        size = max(1, batch)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            for i, (yes, no) in zip(part, self._answers([asked[i][0] for i in part]), strict=True):
                verdicts[i] = replace(verdicts[i], logit_yes=yes, logit_no=no)
            if on_progress:
                on_progress(start + len(part), len(order), {})
        return Moderation(tuple(verdicts), dict(self.model.provenance))

    def _ask(self, place: int, item: Item, policy: Policy) -> tuple[list[int], Verdict]:
        """The ids of a prompt, and its verdict as far as it is known before the model has run."""
        ids, words = prompt_ids(self.model, item, policy, self.template), self.model.words
        held = set(words.encode_batch([item.text + (item.response or "")])[0]) & words.special_ids
        unknown = float("nan")
        controls = tuple(words.pieces(sorted(held)))
        return ids, Verdict(place, item.text, item.response, policy.name, unknown, unknown, len(ids), controls)

    @torch.no_grad()
    def _answers(self, rows: list[list[int]]) -> list[tuple[float, float]]:
        """The logits of Yes and of No after each prompt."""
        model = self.model
        tokens = torch.full((len(rows), max(map(len, rows))), model.cfg.pad, dtype=torch.long, device=model.device)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids, device=model.device)
        stream = model(tokens, stop_at_layer=model.cfg.n_layers)
        last = stream[range(len(rows)), [len(ids) - 1 for ids in rows]]
        logits = model.logits_of(last[:, None])[:, 0, [self.yes, self.no]].double()
        return [(float(yes), float(no)) for yes, no in logits]
