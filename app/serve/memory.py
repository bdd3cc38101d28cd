"""Takes what stays in memory as long as the server out of the rounds of Python's collector of cycles."""

import gc


def spare_the_collector() -> None:
    """Take what is in memory now out of the rounds of Python's collector of cycles: one over all that is imported would stop
    every page for a tenth of a second. To be called when something large was loaded that stays."""
    gc.collect()
    gc.freeze()
