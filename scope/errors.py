"""The errors that scope raises. Each says what is wrong, what there is, and the way out."""


class ScopeError(Exception):
    """Base of every refusal. Its text is meant for the person who typed the command; the command line exits with 2."""


class ConfigError(ScopeError):
    """A setting that cannot be, alone or beside the others."""


class CheckpointError(ScopeError):
    """A model folder that is missing, damaged, or of another architecture."""


class UnknownSite(ScopeError):
    """A hook point that this model or recording does not have."""


class TokensError(ScopeError):
    """Token ids or text that the model cannot take: out of vocabulary, too long, empty."""


class DictionaryError(ScopeError):
    """A dictionary that is damaged, unknown, or made for another model or site."""


class PackError(ScopeError):
    """A feature pack that is missing, damaged, or of another version."""


class EditError(ScopeError):
    """A steering edit that cannot be applied: unknown latent, strength that is no number, wrong width."""


class PictureError(ScopeError):
    """A picture that cannot be read, or pixels that the model cannot take."""
