"""Weights on disk: safetensors with a card, and the files of others read without running code."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkern.models._ports import find_port

BUILTIN_FOLDER = Path(__file__).parent / "weights"

# Under one of these names a training script keeps the state dict inside its checkpoint.
_WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")

# Counters of batch norm that older files lack; they play no part in any result here.
_OPTIONAL_SUFFIX = ".num_batches_tracked"


class WeightsError(RuntimeError):
    """A weights file that cannot be read, or that does not fit the network."""


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did not load; three empty lists if everything fitted.

    Attributes:
        missing: Names of the network that the file lacks.
        unexpected: Names of the file that the network lacks.
        mismatched: ``"name: file (2, 3), network (4, 3)"`` for each difference in shape.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Weights:
    """A state dict in our names, and what is known of it.

    Attributes:
        path: The file it was read from.
        state_dict: The tensors.
        card: Fields of the file's card, see :func:`read_card`.
        port: Public port whose names the file has, if it has not ours.
        options: Options of our network under which it is the port's.
    """

    path: Path
    state_dict: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)
    port: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def save_weights(
    path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as safetensors, atomically.

    The file appears under its name only when it is complete: it is written beside it, flushed to
    the disk and renamed. A full disk or a kill leaves the earlier file as it was.

    Args:
        path: Where; the folder must exist.
        state_dict: Tensors by name, on any device, in any layout.
        metadata: Strings by name for the file's header. Put the card there: JSON text under
            ``"card"``, or one JSON text per field. :func:`read_card` reads either;
            ``create_model(weights=...)`` looks for the field ``config``, the network's
            ``model.config``.

    Raises:
        TypeError: If a metadata value is not a string.
        OSError: If the file cannot be written.
        ImportError: If safetensors is not installed.
    """
    safetensors_torch = _import_safetensors()
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"save_weights: metadata must map str to str, got {type(value).__name__} "
                f"under {key!r}"
            )
    # Clones: safetensors refuses tensors that share memory, and writes contiguous ones only.
    tensors = {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in state_dict.items()
    }
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        safetensors_torch.save_file(tensors, temporary, metadata={"format": "pt", **metadata})
        # mkstemp's files are private; a checkpoint has the permissions of any new file.
        os.chmod(temporary, 0o666 & ~_umask())
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a safetensors file: what it was trained on and how to use it.

    Args:
        path: The file.

    Returns:
        The fields, JSON decoded; those inside a metadata value called ``"card"`` are on the same
        level as the others. Empty for a file of another kind.

    Raises:
        WeightsError: If the file cannot be read.
    """
    path = Path(path)
    return _decode_card(_read_safetensors(path)[0]) if _is_safetensors(path) else {}


def get_weights(name: str) -> dict[str, Path]:
    """Built-in weights of a network: tag -> file.

    Args:
        name: A registered name.

    Returns:
        The tags, sorted; empty if the network has none.

    Raises:
        ValueError: If no network has that name.
    """
    from segkern.models._registry import get_entry

    return _builtin(get_entry(name).name)


def load_weights(model: nn.Module, path_or_tag: str | Path, strict: bool = True) -> LoadReport:
    """Load trained weights into a network that :func:`create_model` built.

    Args:
        model: The network. Where the weights do not fit it is left untouched.
        path_or_tag: A tag of :func:`get_weights`, or a file: safetensors with our names, or a
            PyTorch checkpoint (``torch.load(weights_only=True)``: no code runs) with our names or
            with those of a public port that is recognised by its keys.
        strict: Whether every name and shape must fit. Otherwise whatever fits is loaded.

    Returns:
        What was not loaded.

    Raises:
        WeightsError: If the file cannot be read, is from a port whose network differs, or, with
            ``strict``, does not fit; the message lists every name.
    """
    return apply_weights(model, open_weights(model.config["name"], path_or_tag), strict=strict)


def open_weights(network: str, path_or_tag: str | Path) -> Weights:
    """Read weights for ``network`` and bring the names to ours. Raises as `load_weights` does."""
    path = _resolve(network, path_or_tag)
    state_dict, card = read_state_dict(path)
    port = find_port(network, state_dict)
    if port is None:
        return Weights(path, state_dict, card)
    if port.convert is None:
        raise WeightsError(
            f"{network}: {path.name} is a state dict of {port.source}, which is another network: "
            f"{port.differs}"
        )
    options = {**port.options, **(port.infer(state_dict) if port.infer else {})}
    card = {**({"input": port.input} if port.input else {}), **card}
    return Weights(path, port.convert(state_dict), card, port.source, options)


def apply_weights(model: nn.Module, weights: Weights, strict: bool = True) -> LoadReport:
    """Copy opened weights into ``model``. Arguments, returns and errors as `load_weights`."""
    own = model.state_dict()
    given = weights.state_dict
    missing = [key for key in own if key not in given and not key.endswith(_OPTIONAL_SUFFIX)]
    unexpected = [key for key in given if key not in own]
    bad = [key for key in own if key in given and given[key].shape != own[key].shape]
    mismatched = [
        f"{key}: file {tuple(given[key].shape)}, network {tuple(own[key].shape)}" for key in bad
    ]
    if strict and (missing or unexpected or mismatched):
        raise WeightsError(_misfit_message(model, weights, missing, unexpected, mismatched, bad))
    fitting = {key: given[key] for key in own if key in given and key not in set(bad)}
    model.load_state_dict(fitting, strict=False)
    return LoadReport(missing, unexpected, mismatched)


def load_encoder(
    network: str,
    encoder: nn.Module,
    given: Mapping[str, Tensor],
    source: str,
    prefix: str = "",
) -> None:
    """Copy the weights of a trained encoder into a network's, all of them.

    ``source`` is the file's name and ``prefix`` what its names begin with, for the message.

    Raises:
        WeightsError: If they do not fit; the message lists every name.
    """
    own = encoder.state_dict()
    wrong = sorted(
        key
        for key in own.keys() | given.keys()
        if not key.endswith(_OPTIONAL_SUFFIX)
        and (key not in own or key not in given or own[key].shape != given[key].shape)
    )
    if wrong:
        raise WeightsError(
            f"{network}: {source} does not hold the encoder; missing, left over or of another "
            f"shape: {', '.join(prefix + key for key in wrong)}"
        )
    encoder.load_state_dict(given, strict=False)


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file or PyTorch checkpoint by name, and its card.

    Raises:
        WeightsError: If the file is neither, or holds more than tensors and plain values.
    """
    if _is_safetensors(path):
        metadata, tensors = _read_safetensors(path, with_tensors=True)
        return tensors, _decode_card(metadata)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name}: not loaded, because the file holds more than tensors and plain values "
            f"and reading those would run its code ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path.name}: neither safetensors nor a PyTorch file: {error}"
        ) from error
    return _unwrap(path, loaded), {}


def _unwrap(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without a data-parallel wrapper's prefix."""
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path.name}: holds no state dict, but a {type(loaded).__name__}")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{path.name}: not tensors: {', '.join(others)}")
    if all(key.startswith("module.") for key in loaded):
        return {key.removeprefix("module."): value for key, value in loaded.items()}
    return dict(loaded)


def _resolve(network: str, path_or_tag: str | Path) -> Path:
    tags = _builtin(network)
    if isinstance(path_or_tag, str) and path_or_tag in tags:
        return tags[path_or_tag]
    path = Path(path_or_tag)
    if path.is_file():
        return path
    available = f"its tags are {', '.join(tags)}" if tags else "it has no tags"
    raise WeightsError(
        f"{network}: weights {str(path_or_tag)!r} is neither a file nor a built-in tag; {available}"
    )


def _builtin(network: str) -> dict[str, Path]:
    # Names may continue one another (segnet, segnet_basic), tags hold no underscore.
    prefix = f"{network}_"
    found = {}
    for path in sorted(BUILTIN_FOLDER.glob(f"{prefix}*.safetensors")):
        tag = path.stem.removeprefix(prefix)
        if "_" not in tag:
            found[tag] = path
    return found


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts with a safetensors header: 8 bytes of length, then JSON."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    return len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK"


def _read_safetensors(
    path: Path, with_tensors: bool = False
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and, if asked for, tensors of a safetensors file."""
    _import_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys() if with_tensors else ()
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise WeightsError(f"{path.name}: broken safetensors file: {error}") from error


def _decode_card(metadata: Mapping[str, str]) -> dict[str, Any]:
    card: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if key == "card" and isinstance(value, dict):
            card.update(value)
        elif key != "format":
            card[key] = value
    return card


def _misfit_message(
    model: nn.Module,
    weights: Weights,
    missing: list[str],
    unexpected: list[str],
    mismatched: list[str],
    bad: list[str],
) -> str:
    name = model.config["name"]
    origin = f" (names of {weights.port})" if weights.port else ""
    lines = [f"{name}: {weights.path.name}{origin} does not fit"]
    classes = model.config["num_classes"]
    own = model.state_dict()
    if bad and not missing and not unexpected:
        sizes = {
            theirs
            for key in bad
            for theirs, ours in zip(weights.state_dict[key].shape, own[key].shape, strict=False)
            if theirs != ours and ours == classes
        }
        if len(sizes) == 1:
            lines.append(
                f"the file seems to be for {sizes.pop()} classes and the network has {classes}: "
                "build it with that num_classes, or load with strict=False to keep its own head"
            )
    for title, names in (
        ("missing from the file", missing),
        ("left over in the file", unexpected),
        ("of another shape", mismatched),
    ):
        if names:
            lines.append(f"{title} ({len(names)}):")
            lines.extend(f"  {entry}" for entry in names)
    return "\n".join(lines)


def _import_safetensors() -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError("segkern.models: weights files need the package safetensors")
    import safetensors.torch

    return safetensors.torch


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
