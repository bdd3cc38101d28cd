"""What the store says when it refuses: what is wrong, what there is, and the way out."""


class ActivationsError(Exception):
    """Base of every refusal of this package; its text is meant for the person who typed the command."""


class CorpusError(ActivationsError):
    """Text that is missing, empty, or in a form that cannot be read."""


class RecordingError(ActivationsError):
    """A recording that is missing, damaged, in use, or made from something else."""


class UnknownSiteError(RecordingError):
    """A site that this recording does not hold."""


class HolesWarning(UserWarning):
    """A recording is read without the shards that `scope recording repair` moved aside."""
