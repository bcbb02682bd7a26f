"""Every network of segkern by name, with its paper's recipe and its weights."""

from segkern.models._preprocess import preprocess
from segkern.models._recipe import Recipe
from segkern.models._registry import (
    ModelEntry,
    create_model,
    get_entry,
    list_models,
    register_model,
)
from segkern.models._weights import (
    LoadReport,
    WeightsError,
    get_weights,
    load_weights,
    read_card,
    save_weights,
)

# Importing a network's file registers it.
from segkern.models import deconvnet, enet, segnet, segnet_basic  # isort: skip
from segkern.models import danet, fc_densenet, gcn, gfrnet  # isort: skip
from segkern.models import linknet, pspnet, refinenet  # isort: skip
from segkern.models import deep_parsing_network  # isort: skip
from segkern.models import aunet  # isort: skip
from segkern.models import (
    deeplabv1,
    deeplabv2,
    deeplabv3,
    deeplabv3_cascade,
    deeplabv3plus,
    dilation,
    espnet,
)  # isort: skip

from segkern.models import fcn, patch_cnn, unet  # isort: skip
from segkern.models import maskrcnn  # isort: skip
from segkern.models import decoupled_solo, solo, solov2  # isort: skip
from segkern.models import crfasrnn, random_forest, texton_forest  # isort: skip

__all__ = [
    "LoadReport",
    "ModelEntry",
    "Recipe",
    "WeightsError",
    "aunet",
    "create_model",
    "crfasrnn",
    "danet",
    "deconvnet",
    "decoupled_solo",
    "deep_parsing_network",
    "deeplabv1",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3_cascade",
    "deeplabv3plus",
    "dilation",
    "enet",
    "espnet",
    "fcn",
    "fc_densenet",
    "gcn",
    "get_entry",
    "get_weights",
    "gfrnet",
    "linknet",
    "list_models",
    "load_weights",
    "maskrcnn",
    "patch_cnn",
    "preprocess",
    "pspnet",
    "random_forest",
    "read_card",
    "refinenet",
    "register_model",
    "save_weights",
    "segnet",
    "segnet_basic",
    "solo",
    "solov2",
    "texton_forest",
    "unet",
]
