"""The error of page indexes."""

from scope.errors import ScopeError


class PagesError(ScopeError):
    """A page index that cannot be made, read or asked: missing, damaged, of another model; or a query that is none."""
