"""The type checker of every signature while the tests run: beartype, applied to each function when it is first called.

Building a check takes milliseconds, and a run of some tests, or their collection, calls few of two thousand functions.
"""

from collections.abc import Callable
from functools import wraps

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def beartype_on_first_call(function: Callable) -> Callable:
    checked = None

    @wraps(function)
    def first(*args, **kwargs):
        nonlocal checked
        if checked is None:
            checked = _check(function)
        return checked(*args, **kwargs)

    return first
