"""card.md of an exported intervention: what it does, on which model, with which cost, and what its forms cannot carry."""

from typing import Any

from scope.escape import visible
from scope.provenance import ModelId

CARRIES = {
    "folder": "intervention.json and vectors.safetensors: edits, conditions and positions of any kind but those of a state.",
    "transformers hook": "hook.py: the same edits on a transformers model, without scope. `python hook.py MODEL` writes the "
    "recorded texts again and compares them token by token; this is exact in float32, other types round differently.",
    "GGUF control vector": "control_vector.gguf, for llama.cpp (--control-vector): one vector a layer, added at every token. A "
    "model that is quantised writes other texts than the recorded ones.",
}
ERROR_TERM = (
    "What the SAE does not explain of an activation stays as it is in every form: an edit of a latent changes the latent's own "
    "contribution, and what the SAE missed of the same may remain."
)


def card(intervention: Any) -> str:
    """The card of an `Intervention`. Text of models and prompts stands in code blocks."""
    parts = [
        "# Intervention",
        "",
        *(f"* {_code(row['edit'])} at {_code(row['site'])}{_strength(row)}" for row in intervention.sheet),
        "",
    ]
    parts += ["## Model and SAE", "", *_identities(intervention), ""]
    parts += ["## What it does", ""]
    parts += [f"* {_code(name)} promotes {_code(' '.join(tokens))}" for name, tokens in intervention.promoted.items()]
    parts += [*_measured(intervention.measured), ""]
    parts += ["## Forms", "", f"* {CARRIES['folder']}"]
    for form, why in intervention.forms.items():
        parts.append(f"* {CARRIES[form]}" if why is None else f"* No {form}: {visible(why)}.")
    parts += [f"* {ERROR_TERM}", *(f"* {line}" for line in _adapter(intervention)), ""]
    parts += ["## Use", "", "```python", "import scope", "", 'intervention = scope.load_intervention("THIS FOLDER")']
    parts += [
        "model = scope.load_model(MODEL)",
        "scope.steer(model, None, intervention.edits, PROMPTS, strength_units=intervention.strength_units)",
    ]
    parts += ["```", ""]
    if intervention.hook is not None:
        parts += ["Without scope:", "", "```python", "from hook import steer", "", "with steer(model):  # of transformers"]
        parts += ['    model.generate(**tokenizer(PROMPT, return_tensors="pt"), do_sample=False)', "```", ""]
    if intervention.forms.get("GGUF control vector", "") is None:
        parts += ["    llama-cli -m MODEL.gguf --control-vector control_vector.gguf -p PROMPT", ""]
    parts += [
        "## Recorded texts",
        "",
        "Greedy, each prompt alone. `lead` is the smallest lead of a written token, in logits.",
        "",
    ]
    for text in intervention.texts:
        parts += [f"    prompt   {visible(text.prompt)}"]
        for name in ("plain", "steered"):
            one = getattr(text, name)
            parts += [f"    {name:<8} {visible(one.text)}   (lead {one.lead:.3g})"]
        parts.append("")
    return "\n".join(parts)


def _strength(row: dict[str, Any]) -> str:
    """The strength in the three units, where the edit has one."""
    if "raw" not in row:
        return ""
    maximum = row.get("multiple_of_maximum")
    of_maximum = "maximum not known" if maximum is None else f"{maximum:+.3g} times the largest activation"
    return f": {row['strength']:+.4g} of the typical norm = raw {row['raw']:+.5g} = {of_maximum}"


def _identities(intervention: Any) -> list[str]:
    identity = ModelId.of(intervention.model)
    lines = [f"* model: {_code(identity.name)}, revision {_code(identity.revision)}, weights {_code(identity.weights_sha256)}"]
    lines.append(
        f"* computed in {identity.dtype}; versions: {_code(', '.join(f'{k} {v}' for k, v in intervention.versions.items()))}"
    )
    for site, sae in intervention.dictionaries.items():
        lines.append(
            f"* SAE at {_code(site)}: {sae.get('kind')}, {sae.get('d_sae')} latents, weights {_code(sae.get('weights_sha256'))}"
        )
    for site, units in intervention.strength_units.items():
        lines.append(f"* typical norm at {_code(site)}: {units.typical_norm:.5g} ({_code(units.source)})")
    return lines


def _measured(measured: dict[str, Any]) -> list[str]:
    """Figures that were measured beside it, a line each; lists of lines are taken as they are."""
    lines = []
    for name, value in measured.items():
        if isinstance(value, list):
            lines += ["", f"{visible(name)}:", "", *(f"    {visible(str(line))}" for line in value)]
        elif isinstance(value, dict):
            shown = "; ".join(f"{key}: {', '.join(f'{k} {v}' for k, v in row.items())}" for key, row in value.items())
            lines.append(f"* {visible(name)}: {_code(shown)}")
    return lines or ["* Nothing was measured beside it: scope steer --evaluate measures what it breaks."]


def _adapter(intervention: Any) -> list[str]:
    adapter = ModelId.of(intervention.model).adapter
    if not adapter:
        return []
    return [
        f"The model has the adapter {_code(adapter)}: transformers and llama.cpp need it too (`python hook.py BASE ADAPTER`)."
    ]


def _code(value: Any) -> str:
    """Text as inline code that no backtick in it ends."""
    return f"`{visible(str(value)).replace('`', chr(39))}`"
