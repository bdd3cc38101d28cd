"""Forget and Hold as hooks of one recurrent layer: they add to what is written into the state, so that the change flows on.

What the tokens to forget left, U, is carried along by the same gates as the state, U_t = a_t U_(t-1) + w_t at such a token,
and R is what was taken out of it so far. Where the rule holds, R becomes the part of U, and the difference is taken out of the
write.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.models.griffin.scan import Channels, State, scan
from scope.models.griffin.shares import layer_of
from scope.models.hooks import HookPoint, RunState, only_reads
from scope.null_seeds import generator
from scope.sae.base import SAE
from scope.shapes import Mask
from scope.steering.apply.counts import Step
from scope.steering.apply.latent_reader import LatentReader
from scope.steering.apply.resolve import Resolved
from scope.steering.edits.interventions import Forget, Hold
from scope.steering.edits.spans import Span

Control = int | Tensor | None
"""Where an edit's amount goes: where it should (None), along a random direction (a seed), along another row (a tensor)."""

NEAREST = 3
"""Of the tokens whose share is nearest in length, how many the control is drawn from."""


class Marks:
    """Which tokens a span means in the run that flows, and which others have about the same share; once for all layers."""

    def __init__(self, model: LanguageModel, others: int | None = None):
        self.words, self.others = model.tokenizer, others
        self._tokens: Tensor | None = None
        self._marks: dict[Span, Mask] = {}
        self._other: dict[Span, Mask] = {}

    def of(self, span: Span, run: RunState, rows: slice) -> Mask:
        """Where the span's tokens are.

        Raises:
            EditError: a text, where a stream flows whose tokens are not known.
        """
        self._anew(run)
        if span not in self._marks:
            positions, real = run.positions[rows], run.real[rows]
            if not span.text:
                stop = positions.max() + 1 if span.stop is None else span.stop
                self._marks[span] = (positions >= span.start) & (positions < stop) & real & self.in_prompt(run, rows)
            else:
                if run.tokens is None:
                    raise EditError(
                        f"{span}: a stream flows, and its tokens are not known. Name positions, as in Forget((4, 7))."
                    )
                self._marks[span] = self._row_places(span, run.tokens[rows], real & self.in_prompt(run, rows))
        return self._marks[span]

    def _row_places(self, span: Span, tokens: Tensor, among: Mask) -> Mask:
        found = torch.zeros_like(among)
        for row, (ids, there) in enumerate(zip(tokens.tolist(), among.cpu(), strict=True)):
            index = there.nonzero()[:, 0]
            places = span.places([ids[i] for i in index.tolist()], self.words) if len(index) else []
            found[row, index[places].to(found.device)] = True
        return found

    @staticmethod
    def in_prompt(run: RunState, rows: slice) -> Mask:
        """Within a generation the tokens of the prompt; elsewhere all."""
        positions = run.positions[rows]
        if run.prompt_lengths is None:
            return torch.ones_like(positions, dtype=torch.bool)
        lengths = run.prompt_lengths if len(run.prompt_lengths) == 1 else run.prompt_lengths[rows]
        return positions < lengths[:, None]

    def instead(self, span: Span, run: RunState, rows: slice, retained: Channels, write: Channels) -> Mask:
        """Other tokens of the prompt, next to each other and as many, of which about as much is left at its end as of the
        span's."""
        marks = self.of(span, run, rows)
        if span not in self._other:
            prompt = run.real[rows] & self.in_prompt(run, rows)
            later = torch.cat([retained.masked_fill(~prompt[..., None], 1.0)[:, 1:], torch.ones_like(retained[:, :1])], 1)
            lengths = (write * later.flip(1).cumprod(1).flip(1)).norm(dim=-1)
            allowed = prompt & (run.positions[rows] > 0)
            pairs = zip(lengths.cpu(), marks.cpu(), allowed.cpu(), strict=True)
            self._other[span] = torch.stack([alike(*one, self.others or 0) for one in pairs]).to(marks.device)
        return self._other[span]

    def _anew(self, run: RunState) -> None:
        if self._tokens is not run.positions:
            self._tokens, self._marks, self._other = run.positions, {}, {}


def alike(lengths: Tensor, marks: Tensor, allowed: Tensor, seed: int) -> Tensor:
    """bool [pos]: neighbouring tokens, as many as are marked, without marked ones, and of about the same total length; one of
    the nearest three by the seed. None at all where too few tokens are left."""
    size = int(marks.sum())
    chosen = torch.zeros_like(marks)
    if not size or size > len(marks):
        return chosen
    free = (allowed & ~marks).float().unfold(0, size, 1).sum(1) == size
    starts = free.nonzero()[:, 0]
    if not len(starts):
        return chosen
    totals = lengths.unfold(0, size, 1).sum(1)[starts]
    nearest = starts[(totals - lengths[marks].sum()).abs().argsort(stable=True)[:NEAREST]]
    drawn = torch.randint(len(nearest), (), generator=generator("tokens of equal share", seed))
    start = int(nearest[drawn])
    chosen[start : start + size] = True
    return chosen


class StateEdits:
    """Forget and Hold at one recurrent layer, as functions for its hook points."""

    def __init__(
        self,
        model: LanguageModel,
        sae: SAE | None,
        edits: list[Resolved],
        rows: slice,
        controls: list[Control],
        marks: Marks,
        place: int,
        record: Callable[[Step], None],
    ):
        self.edits, self.rows, self.controls, self.marks = edits, rows, controls, marks
        self.site, self.typical_norm, self.place, self.record = edits[0].site, edits[0].typical_norm, place, record
        self.bos, self.eos = model.cfg.bos, model.cfg.eos[0]
        self.special = model.tokenizer.special_ids if model.tokenizer else frozenset()
        self.write = torch.zeros(len(edits), 1)
        width = model.sites()[self.site]
        self.forgets = [i for i, e in enumerate(edits) if isinstance(e.edit, Forget)]
        self.holds = [i for i, e in enumerate(edits) if isinstance(e.edit, Hold)]
        self.readers = {i: _reader(edits[i], sae) for i in self.holds}
        self.along = {i: self._along(i, width) for i in range(len(edits))}
        self.retained: Channels | None = None
        self.state: State | None = None
        self.left: dict[tuple[int, str], State] = {}

    def hooks(self) -> list[tuple[str, Any]]:
        """(hook point, function) pairs."""
        beginning = f"blocks.{layer_of(self.site)}.rec."
        pairs: list[tuple[str, Any]] = [(f"{beginning}hook_a", self._see_gates), (f"{beginning}hook_write", self)]
        return [*pairs, (self.site, self._see_state)] if self.holds else pairs

    def _along(self, i: int, width: int) -> Tensor | None:
        """The direction in which an edit's amount goes; None where it goes its own way."""
        control = self.controls[i]
        if control is None or (isinstance(self.edits[i].edit, Forget) and self.marks.others is not None):
            return None
        row = control
        if isinstance(control, int):
            row = torch.randn(width, generator=generator(f"random direction {i} at {self.site}", control), dtype=torch.float64)
        return (row / row.norm()).float()

    @only_reads
    def _see_gates(self, a: Tensor, hook: HookPoint) -> None:
        run = hook.run
        starts, padding = (run.positions == 0) & run.real, ~run.real
        retained = a.detach().masked_fill(starts[..., None], 0.0).masked_fill(padding[..., None], 1.0)
        self.retained = retained[self.rows]

    @only_reads
    def _see_state(self, state: Tensor, hook: HookPoint) -> None:
        self.state = state.detach()[self.rows, -1]

    @torch.no_grad()
    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:
        run, retained = hook.run, self.retained
        write = x[self.rows].to(retained.dtype).masked_fill(~run.real[self.rows][..., None], 0.0)
        added, lengths, readings, rules = torch.zeros_like(write), [], {}, {}
        for i, e in enumerate(self.edits):
            rules[i] = e.edit.positions.mask(run, self.bos, self.eos, self.special)[self.rows]
        parts = {i: self._forgotten(i, write, retained, rules[i], run) for i in self.forgets}
        readings = {i: reading for i, (_, reading) in parts.items()}
        changes = {i: change for i, (change, _) in parts.items()}
        for change in changes.values():
            added = added + change
        if self.holds:
            held, read = self._held(write + added, retained, rules)
            changes |= held
            readings |= read
            for change in held.values():
                added = added + change
        lengths = [changes[i].norm(dim=-1) / self.typical_norm for i in range(len(self.edits))]
        order = range(len(self.edits))
        masks = [rules[i] for i in order]
        step = (self.place, copy(run), torch.stack(lengths, -1), [readings[i] for i in order], masks, masks)
        self.record(Step(*step, lengths=added.norm(dim=-1) / self.typical_norm))
        changed = (x[self.rows] + added).to(x.dtype)
        if not torch.isfinite(changed).all():
            raise EditError(f"The edit at {self.site} makes numbers that are not finite. Lower its strength: 1 is all.")
        if changed.shape[0] == x.shape[0]:
            return changed
        x = x.clone()
        x[self.rows] = changed
        return x

    def _forgotten(self, i: int, write: Channels, retained: Channels, rule: Mask, run: RunState) -> tuple[Channels, Tensor]:
        """What is added to the writes, and the length of what the tokens left, [row pos]."""
        edit = self.edits[i]
        change, left = self._taken_out(i, "span", self.marks.of(edit.edit.latent, run, self.rows), write, retained, rule)
        length = change.norm(dim=-1, keepdim=True)
        if self.along[i] is not None:
            change = length * self.along[i].to(change)
        elif self.controls[i] is not None:
            other = self.marks.instead(edit.edit.latent, run, self.rows, retained, write)
            change, _ = self._taken_out(i, "instead", other, write, retained, rule)
            own = change.norm(dim=-1, keepdim=True)
            change = torch.where(own > 0, change * length / own.clamp(min=1e-30), 0.0)
        return change, left.norm(dim=-1)

    def _taken_out(
        self, i: int, name: str, marks: Mask, write: Channels, retained: Channels, rule: Mask
    ) -> tuple[Channels, Channels]:
        """(what is added to the writes, what is left of the marked tokens' writes). Both go on with the next call of a cached
        generation."""
        edit, nothing = self.edits[i], torch.zeros_like(write[:, 0])
        left_before, out_before = (self._carried(i, f"{name} {part}", nothing) for part in ("left", "out"))
        left = scan(retained, write * marks[..., None], left_before)
        wanted = -edit.edit.coefficient(left, edit.amount)
        out = scan(retained.masked_fill(rule[..., None], 0.0), wanted * rule[..., None], out_before)
        earlier = torch.cat([out_before[:, None], out[:, :-1]], 1)
        self.left[i, f"{name} left"], self.left[i, f"{name} out"] = left[:, -1], out[:, -1]
        return torch.where(rule[..., None], retained * earlier - out, 0.0), left

    def _carried(self, i: int, name: str, nothing: State) -> State:
        before = self.left.get((i, name))
        return before if before is not None and before.shape == nothing.shape else nothing

    def _held(
        self, write: Channels, retained: Channels, rules: dict[int, Mask]
    ) -> tuple[dict[int, Channels], dict[int, Tensor]]:
        """By edit what is added to the writes, and the latent's part of the state before each token."""
        state = (
            self.state if self.state is not None and self.state.shape == write[:, 0].shape else torch.zeros_like(write[:, 0])
        )
        held = {i: torch.zeros_like(write) for i in self.holds}
        readings = {i: write.new_zeros(write.shape[:2]) for i in self.holds}
        for t in range(write.shape[1]):
            next_state = torch.addcmul(write[:, t], retained[:, t], state)
            for i in self.holds:
                edit = self.edits[i]
                reading = self.readers[i](state)
                amount = edit.edit.coefficient(reading, edit.amount)[:, None] * edit.row.to(state)
                change = (1 - retained[:, t]) * amount
                begins = (retained[:, t] == 0).all(-1)  # a document starts, and nothing of another flows into it
                change = change * (rules[i][:, t] & ~begins)[:, None]
                if self.along[i] is not None:
                    change = change.norm(dim=-1, keepdim=True) * self.along[i].to(change)
                held[i][:, t], readings[i][:, t] = change, reading
                next_state = next_state + change
            state = next_state
        return held, readings


def _reader(edit: Resolved, sae: SAE | None) -> Callable[[State], Tensor]:
    """The latent's activation, or the projection on the direction, for states [row channel]."""
    if edit.edit.on_direction or sae is None:
        probe = edit.row / edit.row.square().sum()
        return lambda state: state @ probe.to(state)
    reader = LatentReader(sae, [edit.edit.latent])
    return lambda state: reader(state)[:, 0].to(state.dtype)
