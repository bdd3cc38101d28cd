"""The dictionary and units of the steering tests."""

from tests.steering.conftest import sae, units

__all__ = ["sae", "units"]
