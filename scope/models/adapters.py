"""PEFT adapters: small matrices that change some weights of a base model, read from their folder and added when it loads.

An adapter is a folder with adapter_config.json and adapter_model.safetensors. What it does to a weight W [d_out d_in]:

    LoRA       W + scale * B A        with A [r d_in], B [d_out r] and scale alpha / r, or alpha / sqrt(r) (rsLoRA)
    DoRA       m * V / |V|            with V = W + scale * B A, |V| the norm of each row of V, and m [d_out]
    saved      the stored tensor      (PEFT's modules_to_save)
    tokens     rows of the embedding  (PEFT's trainable_token_indices)

Source: LoRA, arXiv:2106.09685; rsLoRA, arXiv:2312.03732; DoRA, arXiv:2402.09353; the layout is PEFT's.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scope.errors import CheckpointError
from scope.models.checkpoints import ADAPTER_CONFIG, BUNDLED, find_checkpoint, find_folder
from scope.models.stored import language_name
from scope.models.weights_hash import hash_files
from scope.typed_json import read_json, typed

WEIGHTS = "adapter_model.safetensors"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NO_PART_IN_IT = frozenset(
    "peft_type base_model_name_or_path revision task_type inference_mode auto_mapping parent_library peft_version r lora_alpha "
    "lora_dropout target_modules exclude_modules modules_to_save layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "use_rslora use_dora init_lora_weights bias trainable_token_indices ensure_weight_tying megatron_core loftq_config "
    "eva_config corda_config lora_ga_config runtime_config qalora_group_size".split()
)
"""Settings that this module reads, or that say how the adapter was trained; any other one that is set is refused."""


@dataclass(frozen=True)
class Settings:
    """What of adapter_config.json decides the numbers."""

    peft_type: str = "PEFT"
    base_model_name_or_path: str | None = None
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool | None = False


@dataclass(frozen=True)
class LowRank:
    """A LoRA or DoRA update of one weight; `magnitude` is DoRA's m."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None

    def delta(self) -> Tensor:
        """scale * B A, [d_out d_in] in float32."""
        return self.scale * (self.B.float() @ self.A.float())

    def applied(self, weight: Tensor) -> Tensor:
        """The changed weight in float32 (float64 stays)."""
        wide = weight.double() if weight.dtype == torch.float64 else weight.float()
        changed = wide + self.delta().to(wide)
        if self.magnitude is None:
            return changed
        return (self.magnitude.to(wide) / torch.linalg.vector_norm(changed, dim=1))[:, None] * changed


@dataclass(frozen=True)
class SavedTensor:
    """A weight that the adapter replaces."""

    value: Tensor

    def applied(self, weight: Tensor) -> Tensor:
        return self.value


@dataclass(frozen=True)
class SavedRows:
    """Rows of the embedding that the adapter replaces."""

    ids: tuple[int, ...]
    rows: Tensor

    def applied(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, torch.tensor(self.ids, device=weight.device), self.rows.to(weight))


Update = LowRank | SavedTensor | SavedRows


class Adapter:
    """An adapter, read: `updates` has, by our parameter name, what becomes of a weight."""

    def __init__(self, folder: Path, settings: Settings, tensors: dict[str, Tensor]):
        self.folder, self.settings, self.tensors = folder, settings, tensors
        self.updates: dict[str, Update] = {}

    base = property(lambda self: self.settings.base_model_name_or_path)
    sha256 = property(lambda self: hash_files([self.folder / WEIGHTS, self.folder / ADAPTER_CONFIG]))

    @classmethod
    def read(cls, folder: Path) -> "Adapter":
        """Read a folder with adapter_config.json and adapter_model.safetensors.

        Raises:
            CheckpointError: a file is missing or damaged, or the adapter is of a kind that is not computed here.
        """
        settings = read_settings(folder)
        file = folder / WEIGHTS
        if not file.is_file():
            there = ", ".join(sorted(p.name for p in folder.iterdir()))
            raise CheckpointError(
                f"{folder} has no {WEIGHTS}; it holds {there}.\n  Pickled adapters are not read: save it anew."
            )
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or was cut short ({error}). Fetch it again.") from None
        if bad := next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None):
            raise CheckpointError(f"{bad} in {file} holds NaN or infinite values; the adapter is damaged.")
        return cls(folder, settings, tensors)

    def fit(
        self,
        names: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        base: str,
        canonical: Callable[[str], str | None] = language_name,
    ) -> None:
        """Find for each tensor of the adapter the weight of the base model that it changes.

        `names` are our parameter names with those of a checkpoint, `shapes` those of our parameters, `canonical` gives the
        name in a checkpoint of a tensor that is spelled otherwise.

        Raises:
            CheckpointError: the adapter changes a weight that this model lacks, or one of another shape.
        """
        ours = {theirs.removesuffix(".weight"): name for name, theirs in names.items()}
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            module, part = _place(key, canonical)
            parts.setdefault(module, {})[part] = tensor
        head, embedding = parts.get("lm_head", {}).get("weight"), parts.get("model.embed_tokens", {}).get("weight")
        tied = self.settings.ensure_weight_tying if head is None else embedding is not None and torch.equal(head, embedding)
        if embedding is not None and not tied:
            raise CheckpointError(
                f"{self.folder} holds an embedding of its own, but not that same matrix as unembedding; a Gemma ties the two.\n"
                "  Train with trainable_token_indices, or with ensure_weight_tying."
            )
        if head is not None and tied:
            del parts["lm_head"]
        for module, tensors in parts.items():
            name = ours.get(module)
            if name is None:
                raise CheckpointError(self._misfit(base, f"it changes {module}, which this model does not have"))
            self.updates[name] = self._update(module, tensors, shapes[name], base)
        if not self.updates:
            raise CheckpointError(f"{self.folder / WEIGHTS} holds no tensor, so this adapter changes nothing. Fetch it again.")

    def _update(self, module: str, tensors: dict[str, Tensor], shape: tuple[int, ...], base: str) -> Update:
        kinds = set(tensors)
        if kinds == {"trainable_tokens_delta"}:
            ids, rows = self._token_ids(), tensors["trainable_tokens_delta"]
            if rows.shape != (len(ids), shape[1]) or not ids or max(ids) >= shape[0]:
                raise CheckpointError(self._misfit(base, f"its rows for tokens {ids} do not fit an embedding {list(shape)}"))
            return SavedRows(ids, rows)
        if kinds == {"weight"}:
            if tensors["weight"].shape != shape:
                raise CheckpointError(
                    self._misfit(base, f"its {module} is {list(tensors['weight'].shape)}, the model's {list(shape)}")
                )
            return SavedTensor(tensors["weight"])
        if (
            kinds - {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}
            or not {"lora_A.weight", "lora_B.weight"} <= kinds
        ):
            raise CheckpointError(
                f"{self.folder} has for {module} the tensors {', '.join(sorted(kinds))}, which is no LoRA or DoRA of a linear "
                "layer.\n  Merge it into its base with PEFT and load the result."
            )
        a, b, magnitude = tensors["lora_A.weight"], tensors["lora_B.weight"], tensors.get("lora_magnitude_vector")
        if len(shape) != 2 or a.shape[1:] != shape[1:] or b.shape != (shape[0], a.shape[0]):
            sizes = f"{list(b.shape)} x {list(a.shape)}, and the weight is {list(shape)}"
            raise CheckpointError(self._misfit(base, f"its update of {module} is {sizes}"))
        if (magnitude is not None) != self.settings.use_dora or (magnitude is not None and magnitude.shape != shape[:1]):
            raise CheckpointError(f"{self.folder} says use_dora {self.settings.use_dora}, and {module} has other tensors.")
        rank = a.shape[0]
        alpha = _by_pattern(self.settings.alpha_pattern, module, self.settings.lora_alpha)
        if (stated := _by_pattern(self.settings.rank_pattern, module, self.settings.r)) != rank:
            raise CheckpointError(f"{self.folder}: {ADAPTER_CONFIG} says rank {stated} for {module}, its matrices have {rank}.")
        return LowRank(a, b, alpha / (rank**0.5 if self.settings.use_rslora else rank), magnitude)

    def _token_ids(self) -> tuple[int, ...]:
        ids = self.settings.trainable_token_indices
        return tuple(ids.get("embed_tokens", ()) if isinstance(ids, dict) else ids or ())

    def warn_of_another_base(self, base: str, config: Mapping[str, Any]) -> None:
        """Warn where the adapter names another base model than the one that it is applied to: two models of one shape, such as
        a base model and its instruction-tuned form, take each other's adapters. Names are compared without their folders, the
        base's own and the `_name_or_path` in its config.json."""
        names = {Path(str(name)).name.lower() for name in (base, config.get("_name_or_path")) if name}
        if self.base and Path(self.base).name.lower() not in names:
            warnings.warn(
                f"The adapter in {self.folder} was made for {self.base}; it is applied to {base}, whose shape is the same. If "
                "that is another model, what comes out was trained by nobody.",
                stacklevel=3,
            )

    def _misfit(self, base: str, problem: str) -> str:
        made_for = f"was made for {self.base}" if self.base else "names no base model"
        return f"The adapter in {self.folder} does not fit {base}: {problem}.\n  It {made_for}; give that as the model."

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Change the weights of a model that is loaded; each is computed in float32 and rounded to the model's dtype once."""
        for name, update in self.updates.items():
            parameter = model.get_parameter(name)
            parameter.copy_(update.applied(parameter.detach()))


def read_settings(folder: Path) -> Settings:
    """What adapter_config.json says.

    Raises:
        CheckpointError: it cannot be read, or asks for what is not computed here.
    """
    file = folder / ADAPTER_CONFIG
    raw: Any = read_json(file, CheckpointError, "Fetch it again.")
    settings = typed(raw, Settings, file, CheckpointError, "Fetch it again.")
    merged = "Merge it into its base with PEFT (merge_and_unload) and load the result."
    if settings.peft_type != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of type {settings.peft_type}; LORA is applied here.\n  {merged}")
    if str(settings.init_lora_weights).lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{folder} was begun with init_lora_weights {settings.init_lora_weights!r}, which changes the base too.\n  {merged}"
        )
    unknown = sorted(name for name, value in raw.items() if value and name not in _NO_PART_IN_IT)
    if settings.bias != "none":
        unknown.append("bias")
    if unknown:
        raise CheckpointError(f"{file} sets {', '.join(unknown)}, which is not computed here.\n  {merged}")
    return settings


def _place(key: str, canonical: Callable[[str], str | None]) -> tuple[str, str]:
    """(module in the base's checkpoint, which tensor of the update) of a tensor's name in an adapter."""
    name = canonical(key.removeprefix("base_model.model.")) or key
    name = name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "trainable_tokens_delta", "weight"):
        if name.endswith(f".{part}"):
            return name.removesuffix(f".{part}").removesuffix(".token_adapter").removesuffix(".modules_to_save"), part
    module, _, part = name.rpartition(".")
    return (name, "weight") if part == "bias" else (module, part)  # a bias that was saved whole


def _by_pattern(pattern: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """PEFT's rule: the first key that is the end of the module's name, as a regular expression."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


@dataclass(frozen=True)
class ModelFolders:
    """Where a model lies: its checkpoint, the adapter on it if any, and the names that find both again."""

    base: Path
    base_name: str
    adapter: Path | None = None
    adapter_name: str | None = None


def find_model(name: str, adapter: str | None = None, revision: str | None = None) -> ModelFolders:
    """The folders of "BASE", "BASE+ADAPTER", or of an adapter alone, whose base is named in it. Either is a folder or a hub
    id; the adapters that come with scope are named as in "bundled+fim". `revision` is that of `name`.

    Raises:
        CheckpointError: a folder or repository that is missing, or an adapter where a base is meant.
    """
    if adapter is None and "+" in name and not Path(name).expanduser().exists():
        name, _, adapter = name.partition("+")
    if adapter is not None:
        return ModelFolders(find_checkpoint(name, revision), name, _adapter_folder(name, adapter), adapter)
    folder = find_folder(name, revision)
    if not (folder / ADAPTER_CONFIG).exists() or (folder / "config.json").exists():
        return ModelFolders(find_checkpoint(name, revision), name)
    base = read_settings(folder).base_model_name_or_path
    if not base:
        raise CheckpointError(f"{folder} holds an adapter that does not name its base.\n  Give both: BASE+{name}")
    try:
        return ModelFolders(find_checkpoint(base), base, folder, name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name} is an adapter of {base}: {error}\n  If the base lies elsewhere, give BASE+{name}."
        ) from None


def _adapter_folder(base: str, adapter: str) -> Path:
    shipped = BUNDLED / "adapters"
    if base == "bundled" and (shipped / adapter).is_dir() and "/" not in adapter:
        return shipped / adapter
    path = Path(adapter).expanduser()
    if "/" not in adapter and not path.exists():
        names = sorted(p.name for p in shipped.iterdir() if p.is_dir()) if shipped.is_dir() else []
        with_base = f" The bundled model has {', '.join(names)}." if base == "bundled" and names else ""
        raise CheckpointError(f"There is no adapter {adapter}: no such folder.{with_base}")
    folder = find_folder(adapter)
    if not (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder} has no {ADAPTER_CONFIG}, so it is no adapter.")
    return folder
