"""Trained networks on disk: tensors and plain values, read without free unpickling."""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libdata.datasets import Dataset
from libmodels import ARCHITECTURES, build_model
from libmodels.networks import Network, check_output
from libstore.errors import InputError
from libstore.safe_pickle import read_torch

_WRAPPERS = {"module", "_module", "_orig_mod"}  # torch.nn.DataParallel, Opacus, torch.compile
_STATE_DICTS = ("net", "state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a network again and to feed it.

    Attributes:
        arch: Name of the network on disk.
        num_classes: Number of logits.
        in_channels: Channels of an image, columns of a table.
        dataset: Name of the data set it was trained on.
        normalization: How that data set's inputs were normalised.
        options: The network's options.
        image_size: Height and width that images were resized to, None for their own.
        tokens: Whether the inputs are token ids.
        input_shape: Shape of one input; empty where an old checkpoint does not say.
        built_in: Key of `ARCHITECTURES`, None for a network from outside.
        source: Digest of the code of a network from outside.
        network: A network from outside, which is never taken from a file but from who asks for it.
    """

    arch: str
    num_classes: int
    in_channels: int
    dataset: str
    normalization: str
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    tokens: bool = False
    input_shape: tuple[int, ...] = ()
    built_in: str | None = None
    source: str | None = None
    network: Network | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.built_in is None and self.source is None and self.arch in ARCHITECTURES:
            object.__setattr__(self, "built_in", self.arch)
        if self.built_in and self.image_size is None:
            object.__setattr__(self, "image_size", ARCHITECTURES[self.built_in].image_size)
        object.__setattr__(self, "input_shape", tuple(self.input_shape))

    @staticmethod
    def for_dataset(network: Network, data: Dataset, image_size: int | None = None) -> ModelSpec:
        """Describe a network for a data set; `image_size` is what its images were resized to."""
        return ModelSpec(
            network.name, data.num_classes, data.in_channels, data.name, data.normalization, dict(network.options),
            image_size, not data.images.is_floating_point(), tuple(data.images.shape[1:]), network.built_in,
            network.source, network,
        )  # fmt: skip

    def build(self) -> nn.Module:
        """Return a freshly initialised network, its lazy layers made.

        Raises:
            InputError: The network is from outside and not at hand, cannot be built, or has other outputs.
        """
        if self.built_in:
            return build_model(
                self.built_in, num_classes=self.num_classes, in_channels=self.in_channels, **self.options
            )
        if self.network is None:
            raise InputError(
                f"{self.arch} is not built in; name it with --arch package.module:callable or file.py:callable"
            )
        model = self.network.build(self.num_classes, self.in_channels)
        if self.input_shape:
            kind = torch.int64 if self.tokens else torch.float32
            check_output(model, torch.zeros(2, *self.input_shape, dtype=kind), self.num_classes, self.network.text)
        return model

    def describe(self) -> dict[str, Any]:
        """Return the description as plain values, for a sidecar."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "network"}
        return plain | {"input_shape": list(self.input_shape)}


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


def load_model(path: Path, network: Network | None = None) -> tuple[nn.Module, ModelSpec]:
    """Build the network a checkpoint describes and load its weights, in evaluation mode.

    Args:
        path: The checkpoint.
        network: What builds a network from outside; a file never says what code to import.

    Raises:
        InputError: The file is missing, damaged, holds code, is of another network or of an earlier version of its
            code, its weights do not fit its description, or one of them is not finite.
    """
    content = read_checkpoint(path)
    try:
        spec, weights = ModelSpec(**content["spec"]), content["state_dict"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: the weights do not fit their description: {error}") from error
    if network and not spec.built_in:
        if network.source != spec.source:
            raise InputError(
                f"{path}: {network.text} is not the code that it was trained with (digest {network.source}, "
                f"{spec.source} then); train again, or bring that code back"
            )
        spec = replace(spec, network=network)
    try:
        with torch.device("meta" if spec.built_in else "cpu"):  # meta: no memory, whatever sizes the file announces
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
