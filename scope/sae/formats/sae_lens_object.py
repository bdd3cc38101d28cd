"""An SAE of ours as an object of SAELens' own class, for code that wants the class itself."""

from typing import Any

from scope.sae.base import SAE
from scope.sae.formats.sae_lens import arrays_of, config_of


def to_sae_lens(sae: Any) -> Any:
    """SAELens' SAE or Transcoder with a copy of the arrays, on the SAE's device; one of SAELens' comes back as it is.

    Raises:
        DictionaryError: a TopK transcoder, which SAELens has no architecture for.
    """
    if not isinstance(sae, SAE):
        return sae
    import sae_lens

    config = config_of(sae) | {"device": str(sae.device)}
    theirs = sae_lens.SAE.from_dict(config)
    theirs.load_state_dict(arrays_of(sae))
    return theirs.to(sae.device).eval()
