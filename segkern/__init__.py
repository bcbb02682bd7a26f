"""Image segmentation on kernels of its own: operators, layers and whole networks for PyTorch.

``segkern.ops`` holds the operators, ``segkern.nn`` drop-in layers over them, ``create_model`` the
networks. Importing segkern needs torch and numpy; training, evaluation and the command line need
the extra ``segkern[train]``.
"""

from __future__ import annotations

from segkern import nn, ops
from segkern._env import env
from segkern.models import create_model, get_weights, list_models
from segkern.nn import convert

__version__ = "0.1.0"

__all__ = ["convert", "create_model", "env", "get_weights", "list_models", "nn", "ops"]
