"""What computes gradients while a dictionary is trained: autograd for any kind, by hand for JumpReLU.

The names that other rooms use; `engines/` holds them: `base` what an engine is, `autograd` the reference, `jumprelu` the same
gradients without a graph, with `screen` and `sparse` under it.
"""

from scope.sae.engines.autograd import Autograd
from scope.sae.engines.base import Batch, Engine
from scope.sae.engines.jumprelu import JumpReLUEngine

__all__ = ["Autograd", "Batch", "Engine", "JumpReLUEngine"]
