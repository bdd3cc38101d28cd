"""The one check of whether a dictionary fits a model, for scoring, steering, attribution, packs and the app."""

from typing import Any, Protocol, runtime_checkable

from scope.errors import DictionaryError
from scope.provenance import ModelId
from scope.sites import nearest


@runtime_checkable
class HasSites(Protocol):
    """The part of a model that the check reads."""

    provenance: dict[str, Any]

    def sites(self) -> dict[str, int]: ...


@runtime_checkable
class ReadsSite(Protocol):
    """The part of a dictionary that the check reads."""

    site: str
    reads: dict[str, int]
    writes: dict[str, int]
    autoencodes: bool
    provenance: dict[str, Any]


def check_fit(model: HasSites, dictionary: ReadsSite, any_model: bool = False, reconstructs: bool = False) -> str:
    """The site that the dictionary reads, once model and dictionary are known to belong together.

    `any_model` allows other weights than those it was trained on, as of a fine-tune of the same base. `reconstructs` refuses a
    transcoder, whose output cannot stand in for what it reads.

    Raises:
        DictionaryError: it names no site, a site that this model lacks, or another width there; or it was trained on other
            weights.
    """
    if reconstructs and not dictionary.autoencodes:
        raise DictionaryError(
            f"This is a transcoder: it reads {dictionary.site or 'one site'} and predicts "
            f"{getattr(dictionary, 'site_out', '') or 'another'}, so its output cannot stand in for what it reads.\n"
            "  Its encode and decode can be used; splicing, scores and steering need an SAE."
        )
    places = [("reads", site, width) for site, width in dictionary.reads.items()]
    if not dictionary.autoencodes:
        places += [("predicts", site, width) for site, width in dictionary.writes.items()]
    sites = model.sites()
    for verb, site, width in places:
        if not site:
            reads = dictionary.provenance.get("reads")
            raise DictionaryError(
                f"This dictionary does not say which site it {verb}{f', only: {reads}' if reads else ''}.\n"
                "  evaluate, features, steer and attribute take --site blocks.2.hook_resid_post, scope.load_sae takes site=.\n"
                "  Or write it into a copy, once: scope convert DICTIONARY OUT --to scope --site blocks.2.hook_resid_post"
            )
        if site not in sites:
            raise DictionaryError(f"This dictionary {verb} {site}, which this model does not have.{nearest(site, list(sites))}")
        if sites[site] != width:
            raise DictionaryError(
                f"This dictionary {verb} width {width}, and {site} of this model is {sites[site]} wide: it was made for "
                "another model or site.\n  Give the model that its recording was made with."
            )
    trained_on, given = ModelId.of(dictionary.provenance.get("model")), ModelId.of(model.provenance)
    if trained_on.same_weights(given) is False and not any_model:
        raise DictionaryError(
            f"This dictionary was trained on {trained_on}; this model is {given}.\n"
            "  Load the model it was trained on, or say that you mean this one: any_model=True, or --any-model."
            f"{_of_window(trained_on, given)}"
        )
    return dictionary.site


def _of_window(trained_on: ModelId, loaded: ModelId) -> str:
    """The way out where only the reading of the window differs."""
    if trained_on.weights_sha256 != loaded.weights_sha256:
        return ""
    convention = trained_on.window_convention or "as in its config.json"
    return f"\n  The weights are the same, and windows are read otherwise: --window-convention {convention}."
