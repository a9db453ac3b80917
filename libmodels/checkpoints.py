"""Trained networks on disk: tensors and plain values, read without free unpickling."""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libdata.datasets import Dataset
from libdata.errors import InputError
from libdata.safe_pickle import read_torch
from libmodels import ARCHITECTURES, build_model

_WRAPPERS = {"module", "_module", "_orig_mod"}  # torch.nn.DataParallel, Opacus, torch.compile
_STATE_DICTS = ("net", "state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a network again and to feed it.

    Attributes:
        arch: A key of `ARCHITECTURES`.
        options: The architecture's options, all of them.
        num_classes: Number of logits.
        in_channels: Channels of the input.
        dataset: Name of the data set it was trained on.
        normalization: How that data set's pixels were normalised.
    """

    arch: str
    num_classes: int
    in_channels: int
    dataset: str
    normalization: str
    options: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def for_dataset(arch: str, data: Dataset, **options: str) -> ModelSpec:
        """Describe a network for a data set; options not given take the architecture's default."""
        known = ARCHITECTURES[arch].options
        chosen = {name: values[0] for name, values in known.items()}
        for name, value in options.items():
            if value not in known.get(name, ()):
                raise InputError(f"--{name} {value}: architecture {arch!r} has no such option")
            chosen[name] = value
        return ModelSpec(arch, data.num_classes, data.in_channels, data.name, data.normalization, chosen)

    @property
    def image_size(self) -> int | None:
        """Height and width of the inputs, None for the data set's own."""
        return ARCHITECTURES[self.arch].image_size

    def build(self) -> nn.Module:
        """Return a freshly initialised network."""
        return build_model(self.arch, num_classes=self.num_classes, in_channels=self.in_channels, **self.options)

    def describe(self) -> dict[str, Any]:
        """Return the description as plain values, for a sidecar."""
        return asdict(self)


def to_bytes(content: dict[str, Any]) -> bytes:
    """Serialise tensors and plain values; the bytes depend on the content only."""
    buffer = io.BytesIO()
    torch.save(_shared_strings(content), buffer)
    return buffer.getvalue()


def _shared_strings(content: Any) -> Any:
    """Rebuild containers with equal strings as one object: a pickle repeats an object by reference."""
    if isinstance(content, dict):
        return {_shared_strings(key): _shared_strings(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_shared_strings, content))
    return sys.intern(content) if type(content) is str else content


def model_bytes(model: nn.Module, spec: ModelSpec, **extra: Any) -> bytes:
    """Serialise a network's weights with its description and plain extras."""
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    return to_bytes({"spec": spec.describe(), "state_dict": weights, **extra})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values onto the CPU; anything else in it is refused."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            reason = f"refused to unpickle: it asks for {asked[1]}, which is neither a tensor nor a plain value"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it holds something else than tensors and plain values"
        else:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot read the checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a checkpoint of this project, it holds a {type(content).__name__}")
    return content


def own_names(weights: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return a state dict under a network's own names, whatever wrapped the network, or a part, when it was saved.

    Args:
        weights: The state dict; `module.`, `_module.` and `_orig_mod.` anywhere in a name are wrappers'.
        names: The names in the network's state dict.

    Returns:
        The weights; those that belong to no name keep theirs.
    """

    def plain(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

    own = {plain(name): name for name in names}
    renamed = {own.get(plain(name), name): value for name, value in weights.items()}
    ambiguous = len(own) < len(names) or len(renamed) < len(weights)
    return dict(weights) if ambiguous or weights.keys() == set(names) else renamed


def read_weights(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """Read the weights of a network from another program's checkpoint, which may hold any objects besides.

    Names that wrappers have changed are understood; where a network's shapes are all different, so are other names.

    Args:
        path: A file of torch.save: a state dict, or a dictionary with one under `net`, `state_dict`,
            `model_state_dict` or `model`.
        model: The network, not changed.

    Returns:
        A state dict for the network, on the CPU.

    Raises:
        InputError: The file cannot be read, holds no state dict, its weights do not fit, or one is not finite.
    """
    content = read_torch(path)
    held = [content, *(content[key] for key in _STATE_DICTS if key in content)] if isinstance(content, dict) else []
    found = next((one for one in held if _is_state_dict(one)), None)
    if found is None:
        raise InputError(f"{path}: holds no state dict, neither itself nor under {', '.join(_STATE_DICTS)}")
    expected = {name: value.shape for name, value in model.state_dict().items()}
    weights = own_names(found, expected)
    if weights.keys().isdisjoint(expected) and len(set(expected.values())) == len(expected):
        by_shape = {shape: name for name, shape in expected.items()}
        weights = {by_shape.get(value.shape, name): value for name, value in weights.items()}
    for name in sorted({*expected, *weights}):
        if name not in weights or name not in expected:
            raise InputError(f"{path}: {name!r} is {'missing' if name in expected else 'too much'} in its state dict")
        if weights[name].shape != expected[name]:
            shapes = f"{tuple(weights[name].shape)}, the network's {tuple(expected[name])}"
            raise InputError(f"{path}: {name!r} has shape {shapes}")
        if not torch.isfinite(weights[name]).all():
            raise InputError(f"{path}: {name!r} holds a value that is not finite")
    return weights


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def load_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """Build the network a checkpoint describes and load its weights, in evaluation mode.

    Raises:
        InputError: The file is missing, damaged, holds code, its weights do not fit its description, or one of
            them is not finite.
    """
    content = read_checkpoint(path)
    try:
        spec, weights = ModelSpec(**content["spec"]), content["state_dict"]
        with torch.device("meta"):  # takes no memory, whatever sizes the file announces
            expected = {name: value.shape for name, value in spec.build().state_dict().items()}
        weights = own_names(weights, expected)
        for name in sorted({*expected, *weights}):
            if name not in weights or weights[name].shape != expected.get(name):
                raise ValueError(f"{name!r} is missing, too much or of another shape")
        model = spec.build()
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: the weights do not fit their description: {str(error).splitlines()[0]}") from error
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{path}: {name!r} holds a value that is not finite")
    return model.eval(), spec
