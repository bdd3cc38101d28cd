"""Division of the training of one dictionary among several processes: each has a share of every batch, or of the latents."""

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.engines.base import Batch
from scope.sae.objectives.base import Objective
from scope.training.checkpoint import Part
from scope.training.config import TrainConfig
from scope.training.processes import ProcessGroup


class Division:
    """One dictionary among the processes of `group`; `whole` has all latents, and no arrays while each process has its own."""

    def __init__(self, whole: SAE, group: ProcessGroup):
        self.whole, self.group = whole, group
        self.by_latent = group.mode == "width" and group.talks

    def take_share(self, objective: Objective) -> Objective:
        """The objective of this process, over its share of the dictionary."""
        if not self.group.talks:
            return objective
        if not self.by_latent:
            return objective.over(self.group, self.whole)
        mine = objective.over(self.group, self.whole.part(self.group.share(self.whole.d_sae)))
        for p in self.whole.parameters():
            p.data = p.data.new_empty(0)
        return mine

    def together(self, objective: Objective, batch: Batch) -> Batch:
        """Gradients and numbers as of the whole batch and the whole dictionary."""
        group, sae = self.group, objective.sae
        if not group.talks:
            return batch
        if self.by_latent:
            for name in set(objective.sums_over_latents) & set(batch.terms):
                batch.terms[name] = self.sum([batch.terms[name]])[0]
            return batch
        for p in sae.parameters():
            if p.grad is not None:
                group.mean(p.grad)
        numbers = torch.tensor([batch.error, batch.l0, batch.candidates, *batch.terms.values()], dtype=torch.float64)
        error, l0, candidates, *terms = group.mean(numbers.to(sae.W_dec.device)).tolist()
        return Batch(dict(zip(batch.terms, terms, strict=True)), error, l0, group.sum(batch.fired), candidates)

    def sum(self, numbers: list[float]) -> list[float]:
        """Added up over the processes."""
        return self.group.sum(torch.tensor(numbers, dtype=torch.float64, device=self.whole.W_dec.device)).tolist()

    def mean_over_latents(self, *shares: float) -> list[float]:
        """Shares of this process's latents -> of all latents."""
        if not self.by_latent:
            return list(shares)
        mine = self.group.share(self.whole.d_sae)
        return [n / self.whole.d_sae for n in self.sum([share * (mine.stop - mine.start) for share in shares])]

    def part(self, tensor: Tensor, dim: int | None = 0) -> Tensor | Part:
        """What a checkpoint holds of a tensor of this process whose dimension `dim` is over the latents."""
        return Part(tensor, dim, self.whole.d_sae) if self.by_latent and dim is not None else tensor

    def own_share(self, tensor: Tensor, dim: int | None = 0) -> Tensor:
        """This process's share of such a tensor out of a checkpoint."""
        if not self.by_latent or dim is None:
            return tensor
        share = self.group.share(self.whole.d_sae)
        return tensor.narrow(dim, share.start, share.stop - share.start)

    def assembled(self, sae: SAE) -> SAE | None:
        """The dictionary with all latents on the process that writes, None on the others."""
        if not self.by_latent:
            return sae if self.group.writes else None
        arrays = {}
        for name, p in sae.named_parameters():
            part = self.part(p.detach(), self.whole.latent_dims.get(name))
            arrays[name] = self.group.gather(part) if isinstance(part, Part) else part
        if not self.group.writes:
            return None
        for name, p in self.whole.named_parameters():
            p.data = arrays[name].cpu()
        return self.whole


def refuse_division(objective: Objective, config: TrainConfig, group: ProcessGroup) -> None:
    """
    Raises:
        ConfigError: divided like this, or with a bias on x, the dictionary would learn something else.
    """
    sae = objective.sae
    what = f"kind {sae.kind}" + (" and nested widths" if sae.config.nested else "")
    if config.pre_bias and not objective.one_path:
        raise ConfigError(f"pre_bias is for kinds with one path through the encoder; {sae.kind} has two. Leave it out.")
    if not group.talks:
        return
    if group.mode == "width" and not objective.shares_latents:
        raise ConfigError(
            f"--parallel width needs latents that do not depend on one another, as those of a plain jumprelu; with {what} they "
            "do.\n  Use --parallel site, or one process."
        )
    if group.mode == "width" and sae.d_sae < group.world:
        raise ConfigError(f"{sae.d_sae} latents cannot be split over {group.world} processes. Start fewer.")
    if group.mode == "data" and not objective.shares_batch:
        raise ConfigError(
            f"--parallel data averages gradients over tokens; with {what} what is learnt depends on the whole batch.\n"
            "  Use --parallel site, or one process."
        )
    if group.mode == "data" and config.batch_size % group.world:
        raise ConfigError(
            f"A batch_size of {config.batch_size} cannot be shared evenly by {group.world} processes.\n"
            f"  Give --batch-size {config.batch_size // group.world * group.world or group.world}, or other processes."
        )
