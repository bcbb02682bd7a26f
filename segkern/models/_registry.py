"""The list of networks: registering one, finding it by name, building it."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from segkern.models._options import check_types
from segkern.models._recipe import INPUT_MODES, Recipe
from segkern.models._weights import Weights, apply_weights, open_weights
from segkern.nn.attach_crf import attach_crf

# Of the layer's names in the state dict of a network with a CRF.
CRF_PREFIX = "crf."
# What networks find.
TASKS = ("semantic", "instance", "panoptic")

_ENTRIES: dict[str, ModelEntry] = {}


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a registered network.

    Attributes:
        name: Name for :func:`create_model`.
        builder: Builds the network from a ``config``.
        config: Frozen dataclass of the network's options; ``num_classes`` and ``in_channels`` are
            among its fields, every field has a default and a JSON value.
        num_classes: Classes where none are asked for.
        parameters: Trainable parameters at ``num_classes`` classes and 3 input channels.
        paper: Authors, title, venue, arXiv number.
        recipe: The paper's training recipe.
        head: Name of the parameter with one value per class, from which the number of classes of
            a weights file is read.
        head_background: Whether that parameter has a value for the background too, where
            ``num_classes`` counts one.
        reported: Results that the paper reports, by data set and metric.
        recipe_of: The recipe of a config whose numbers differ from ``recipe``, where some do.
        task: What the network finds: ``"semantic"`` classes of pixels, ``"instance"`` masks of
            objects, or ``"panoptic"``, both.
    """

    name: str
    builder: Callable[[Any], nn.Module]
    config: type
    num_classes: int
    parameters: int
    paper: str
    recipe: Recipe
    head: str
    reported: Mapping[str, float] = field(default_factory=dict)
    recipe_of: Callable[[Any], Recipe] | None = None
    task: str = "semantic"
    head_background: bool = True

    def choose_recipe(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe of the network with these options, its own beside its config's defaults."""
        if self.recipe_of is None:
            return self.recipe
        fields = {f.name for f in dataclasses.fields(self.config)}
        return self.recipe_of(
            self.config(**{key: value for key, value in options.items() if key in fields})
        )

    @property
    def options(self) -> list[str]:
        """Keyword arguments of the network besides those of every network."""
        common = ("num_classes", "in_channels")
        return [f.name for f in dataclasses.fields(self.config) if f.name not in common]


def register_model(
    config: type,
    *,
    parameters: int,
    paper: str,
    recipe: Recipe,
    head: str,
    reported: Mapping[str, float] | None = None,
    name: str | None = None,
    recipe_of: Callable[[Any], Recipe] | None = None,
    task: str = "semantic",
    head_background: bool = True,
) -> Callable[[Callable[[Any], nn.Module]], Callable[[Any], nn.Module]]:
    """Enter a builder into the list of networks. The arguments are :class:`ModelEntry`'s.

    Args:
        config: Config dataclass; its default ``num_classes`` becomes the registered one.
        name: Registered name; the builder's own where it is ``None``.

    Returns:
        A decorator that returns the builder unchanged.

    Raises:
        ValueError: If the name is taken, or ``task`` is not one of :data:`TASKS`.

    Example:
        >>> from segkern.models import get_entry
        >>> get_entry("enet").parameters
        363856
    """

    def enter(builder: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
        entry = ModelEntry(
            name=name or builder.__name__,
            builder=builder,
            config=config,
            num_classes=config().num_classes,
            parameters=parameters,
            paper=paper,
            recipe=recipe,
            head=head,
            reported=dict(reported or {}),
            recipe_of=recipe_of,
            task=task,
            head_background=head_background,
        )
        if task not in TASKS:
            shown = ", ".join(map(repr, TASKS))
            raise ValueError(f"register_model: task must be one of {shown}, got {task!r}")
        if entry.name in _ENTRIES:
            raise ValueError(f"register_model: the name {entry.name!r} is taken")
        _ENTRIES[entry.name] = entry
        return builder

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered networks, sorted.

    Args:
        pattern: Shell wildcards, as in ``"segnet*"``.

    Returns:
        The names that match; empty if none does.

    Example:
        >>> from segkern.models import list_models
        >>> list_models("segnet*")
        ['segnet', 'segnet_basic']
    """
    return sorted(fnmatch.filter(_ENTRIES, pattern))


def get_entry(name: str) -> ModelEntry:
    """The registered network of that name.

    Raises:
        ValueError: If there is none; the message names close matches.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        close = difflib.get_close_matches(str(name).lower(), _ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {_names()}"
        raise ValueError(f"create_model: no network is named {name!r}; {hint}")
    return entry


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    weights_backbone: str | Path | None = None,
    crf: bool | Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network.

    Args:
        name: A name of :func:`list_models`.
        num_classes: Output channels. ``None``: those of ``weights`` if given, else the registered
            default.
        in_channels: Input channels. ``None``: those of ``weights`` if they say, else 3.
        weights: Trained weights of the whole network: a tag of
            :func:`segkern.models.get_weights` or a file, see
            :func:`segkern.models.load_weights`. Options that a file of ours records are the
            defaults then.
        weights_backbone: Weights of the part that was trained on something else before, for
            networks with a ``load_backbone`` method, which says what it takes.
        crf: End the network with a CRF-as-RNN: ``True``, or the arguments of
            :func:`segkern.nn.attach_crf`, which makes it. ``None``: as ``weights`` has it.
        **options: The network's own, see its config class.

    Returns:
        The network, in training mode. Its ``forward`` takes ``(N, in_channels, H, W)`` floats and
        returns a dict with ``"out"``, ``(N, num_classes, H, W)`` logits (smaller where the
        network's documentation says so). ``config`` holds the arguments that build it again
        without weights, ``create_model(**model.config)``, ready for JSON. ``recipe`` is the
        :class:`Recipe`, whose ``input`` is what the loaded weights expect, if they say. A forward
        of anything but floats raises TypeError, of other axes or channels ValueError.

    Raises:
        ValueError: If the name is unknown or an argument is out of range.
        TypeError: If an option is not one of the network's, or of another type.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> from segkern.models import create_model
        >>> model = create_model("enet", num_classes=11)
        >>> tuple(model(torch.zeros(2, 3, 24, 40))["out"].shape)
        (2, 11, 24, 40)
    """
    entry = get_entry(name)
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        raise TypeError(
            f"create_model: {name} takes no argument {', '.join(map(repr, unknown))}; "
            f"its own are {', '.join(entry.options)}"
        )
    given = dict(options)
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {key} must be a positive int, got {value!r}")
            given[key] = value

    opened = None if weights is None else open_weights(name, weights)
    recorded = {} if opened is None else _recorded_options(entry, opened)
    config = entry.config(**{**recorded, **given})
    check_types(name, config)
    model = entry.builder(config)
    model.config = {"name": name, **dataclasses.asdict(config)}
    model.recipe = entry.choose_recipe(dataclasses.asdict(config))
    if weights_backbone is not None:
        if not hasattr(model, "load_backbone"):
            raise ValueError(f"create_model: {name} has no backbone to load weights_backbone into")
        model.load_backbone(weights_backbone)
    if opened is None:
        return _with_crf(model, crf)
    if opened.card.get("input") in INPUT_MODES:
        model.recipe = dataclasses.replace(model.recipe, input=opened.card["input"])
    if any(key.startswith(CRF_PREFIX) for key in opened.state_dict):
        recorded_crf = (opened.card.get("config") or {}).get("crf", True)
        model = _with_crf(model, recorded_crf if crf is None else crf)
        apply_weights(model, opened)
        return model
    apply_weights(model, opened)
    return _with_crf(model, crf)


def _with_crf(model: nn.Module, crf: bool | Mapping[str, Any] | None) -> nn.Module:
    if crf is None or crf is False:
        return model
    if crf is not True and not isinstance(crf, Mapping):
        raise TypeError(f"create_model: crf must be a bool or a dict, got {type(crf).__name__}")
    return attach_crf(model, **({} if crf is True else crf))


def _recorded_options(entry: ModelEntry, opened: Weights) -> dict[str, Any]:
    """Options that a weights file tells: its card's, else its port's and its head's classes."""
    recorded = opened.card.get("config")
    if isinstance(recorded, dict) and recorded.get("name", entry.name) == entry.name:
        fields = {f.name for f in dataclasses.fields(entry.config)}
        return {key: value for key, value in recorded.items() if key in fields}
    options = dict(opened.options)
    head = opened.state_dict.get(entry.head)
    if head is not None:
        options["num_classes"] = head.shape[0] + (0 if entry.head_background else 1)
    return options


def _names() -> str:
    return ", ".join(list_models())
