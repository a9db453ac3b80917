"""Turn a Feldman-Zhang run directory into a PyTorch file: python -m libmodels.tf_checkpoint SRC DST.

SRC holds checkpoints/ckpt-<epoch>.index and its .data file, as released. TensorFlow reads the arrays in a process
of its own; what is written needs no TensorFlow. Beside DST lies a JSON sidecar with the SHA-256 of the source files.
"""

from __future__ import annotations

import libcli as cli

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from libmodels import ARCHITECTURES, tf_arrays
from libmodels.checkpoints import ModelSpec, load_model, model_bytes
from libmodels.networks import Network
from libstore.errors import InputError
from libstore.store import Output, exclusive, file_sha256, provenance

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Attributes that the Sonnet modules spell without a leading underscore.
_PUBLIC = {"conv1", "stage1", "stage2", "stage3", "conv1x1", "conv3x3", "conv", "bn"}
_COUNTERS = ("epoch", "global_step")
# What the released ensembles were trained on, by number of classes.
_TRAINED_ON = {("small_inception", 10): "cifar10", ("small_inception", 100): "cifar100", ("resnet50", 1000): "imagenet"}
_NORMALIZATION = {"small_inception": "unit", "resnet50": "standard"}


def read_variables(prefix: Path) -> dict[str, np.ndarray]:
    """Return every variable of a checkpoint by its path, without the common suffix.

    Args:
        prefix: The checkpoint's files without ".index" and ".data-...".

    Raises:
        InputError: TensorFlow is missing or cannot read the checkpoint.
    """
    with tempfile.TemporaryFile() as file:  # no name on disk: nothing stays behind, however this ends
        process = subprocess.run(
            [sys.executable, "-P", tf_arrays.__file__, prefix.resolve(), f"/dev/fd/{file.fileno()}"],
            pass_fds=[file.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        lines = process.stderr.strip().splitlines()
        reason = lines[-1] if lines else "it ended without a word"
        if process.returncode == tf_arrays.UNREADABLE:
            raise InputError(f"{prefix}: TensorFlow cannot read the checkpoint: {reason}")
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise InputError(f"{prefix}: cannot convert, TensorFlow was ended by {name} (too little memory?)")
        if process.returncode:
            raise InputError(
                f"{prefix}: cannot convert, TensorFlow does not run here ({reason}); pip install tensorflow"
            )
        file.seek(0)  # where /dev/fd shares it
        with np.load(file, allow_pickle=False) as arrays:
            return {name.removesuffix(_SUFFIX): arrays[f"array_{i}"] for i, name in enumerate(arrays["names"].tolist())}


def find_checkpoint(run: Path) -> Path:
    """Return the prefix of the one TensorFlow checkpoint of a run directory.

    Raises:
        InputError: There is none, there are several, or its data file is missing.
    """
    folder = run / "checkpoints"
    found = sorted(folder.glob("ckpt-*.index"))
    if len(found) != 1:
        names = (
            f"{len(found)} TensorFlow checkpoints ({', '.join(path.name for path in found)})"
            if found
            else "no ckpt-*.index"
        )
        raise InputError(f"{folder}: expected one checkpoint, found {names}")
    prefix = found[0].with_suffix("")
    if not list(folder.glob(f"{prefix.name}.data-*")):
        raise InputError(f"{prefix}.data-00000-of-00001: missing beside {found[0].name}")
    return prefix


def source_digest(prefix: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, by name."""
    files = [prefix.with_name(f"{prefix.name}.index"), *sorted(prefix.parent.glob(f"{prefix.name}.data-*"))]
    return {path.name: file_sha256(path) for path in files}


def identify(variables: Mapping[str, np.ndarray], source: Path) -> ModelSpec:
    """Tell architecture, version, classes and training data from a checkpoint's variables.

    Raises:
        InputError: It is neither network, or of a size that no released ensemble has.
    """
    if "model/stage1/_body/0/conv1x1/conv/w" in variables:
        arch, options, first, last = "small_inception", {}, "model/conv1/conv/w", "model/_pred/b"
    elif "model/_initial_conv/w" in variables:
        version = "v2" if "model/_final_batchnorm/scale" in variables else "v1"
        arch, options, first, last = "resnet50", {"resnet_version": version}, "model/_initial_conv/w", "model/_logits/b"
    else:
        some = ", ".join(sorted(variables)[:3]) or "nothing"
        raise InputError(f"{source}: neither SmallInception nor ResNet50; it holds {some} ...")
    for name, rank in ((first, 4), (last, 1)):
        if name not in variables:
            raise InputError(f"{source}: variable {name!r} is missing")
        if variables[name].ndim != rank:
            raise InputError(
                f"{source}: variable {name!r} has shape {variables[name].shape}, expected {rank} dimensions"
            )
    classes = len(variables[last])
    if (arch, classes) not in _TRAINED_ON:
        known = ", ".join(f"{name} with {number}" for name, number in _TRAINED_ON)
        raise InputError(f"{source}: {arch} with {classes} classes; known: {known}")
    return ModelSpec(
        arch=arch,
        num_classes=classes,
        in_channels=variables[first].shape[2],
        dataset=_TRAINED_ON[arch, classes],
        normalization=_NORMALIZATION[arch],
        options=options,
    )


def convert(variables: Mapping[str, np.ndarray], spec: ModelSpec, source: Path) -> nn.Module:
    """Build the network and fill every parameter and buffer from a checkpoint's variables.

    Convolution kernels go from (height, width, in, out) to (out, in, height, width), linear ones from
    (in, out) to (out, in). BatchNorm takes the debiased `average` of its moving statistics; the running
    sums they come from (`_hidden`, `_counter`) are checked for shape, the counter is kept.

    Args:
        variables: Arrays by path, as `read_variables` returns them.
        spec: What to build.
        source: Name for error messages.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: A variable is missing or of another shape, or one of the model's is left over.
    """
    model = spec.build()
    unused = dict(variables)

    def take(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in unused:
            raise InputError(f"{source}: variable {name!r} is missing")
        value = unused.pop(name)
        if value.shape != shape:
            raise InputError(f"{source}: variable {name!r} has shape {value.shape}, expected {shape}")
        return torch.from_numpy(np.ascontiguousarray(value))

    state = {}
    for name, module in model.named_modules():
        path = "/".join(
            ["model", *(part if part in _PUBLIC or part.isdecimal() else f"_{part}" for part in name.split("."))]
        )
        if isinstance(module, nn.Conv2d):
            out, into, height, width = module.weight.shape
            state[f"{name}.weight"] = take(f"{path}/w", (height, width, into, out)).permute(3, 2, 0, 1)
        elif isinstance(module, nn.Linear):
            out, into = module.weight.shape
            state[f"{name}.weight"] = take(f"{path}/w", (into, out)).T
            state[f"{name}.bias"] = take(f"{path}/b", (out,))
        elif isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            state[f"{name}.weight"] = take(f"{path}/scale", (channels,))
            state[f"{name}.bias"] = take(f"{path}/offset", (channels,))
            for statistic, buffer in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
                moving = f"{path}/{statistic}"
                state[f"{name}.{buffer}"] = take(f"{moving}/average", (1, 1, 1, channels)).flatten()
                take(f"{moving}/_hidden", (1, 1, 1, channels))
                state[f"{name}.num_batches_tracked"] = take(f"{moving}/_counter", ())
    left = sorted(name for name in unused if name.startswith("model/"))
    if left:
        raise InputError(f"{source}: {spec.arch} has no place for {len(left)} variables: {', '.join(left)}")
    model.load_state_dict(state)
    return model.eval()


def converted(run: Path, cache: Path, *, keep: bool, overwrite: bool = True) -> tuple[nn.Module, ModelSpec]:
    """Return the network of a released run, converting it unless a converted file of the same source is there.

    Args:
        run: The run directory.
        cache: Where the converted file is looked for and, if `keep`, written.
        keep: Write the converted file and its sidecar.
        overwrite: Replace a converted file of another source instead of refusing it.

    Returns:
        The network in evaluation mode and its description.

    Raises:
        InputError: The run has no or several checkpoints, or one that does not fit.
    """
    prefix = find_checkpoint(run)
    output = Output(cache, {"source": source_digest(prefix)})
    if output.finished(overwrite=overwrite):
        return load_model(cache)
    variables = read_variables(prefix)
    spec = identify(variables, prefix)
    model = convert(variables, spec, prefix)
    counters = {name: int(variables[name]) for name in _COUNTERS if name in variables}
    others = sorted(
        name for name in variables if not name.startswith("model/") and name not in (*_COUNTERS, "save_counter")
    )
    if others:
        print(f"{prefix}: not part of the model and left out: {', '.join(others)}", file=sys.stderr)
    if keep:
        with exclusive(cache.parent):
            output.save(model_bytes(model, spec, **counters), provenance(left_out=others))
    return model, spec


@dataclass(frozen=True)
class RunModel:
    """A run's network before it is loaded.

    Attributes:
        identity: Digest of its checkpoint and what is known of it, for a sidecar.
        normalization: How it expects pixels.
        image_size: Height and width it expects, None for the data set's own.
        tokens: Whether it takes token ids.
        load: Returns the network in evaluation mode; converts it if need be.
    """

    identity: dict[str, Any]
    normalization: str
    image_size: int | None
    tokens: bool
    load: Callable[[], nn.Module]


def open_run(run: Path, dataset: str, network: Network, cache: Path, *, keep: bool) -> RunModel:
    """Find the network of a run, one of this project (checkpoints/model.pt) or a released one.

    Args:
        run: The run directory.
        dataset: Data set it should have been trained on.
        network: What it should be.
        cache: Where the converted file of a released run is looked for.
        keep: Keep the converted file there.

    Raises:
        InputError: There is no network, or it is of another data set or architecture. What only the
            checkpoint's content tells is told by `load`.
    """
    arch = network.name

    def check(spec: ModelSpec, source: Path) -> None:
        if (spec.dataset, spec.arch) != (dataset, arch):
            raise InputError(f"{source}: {spec.arch} trained on {spec.dataset!r}, not {arch} on {dataset!r}")

    own = run / "checkpoints" / "model.pt"
    if own.exists():
        model, spec = load_model(own, network)
        check(spec, own)
        identity = {"sha256": file_sha256(own), "spec": spec.describe()}
        return RunModel(identity, spec.normalization, spec.image_size, spec.tokens, lambda: model)
    if arch not in _NORMALIZATION:
        raise InputError(f"{own}: missing, and no released ensemble has the architecture {arch!r}")
    prefix = find_checkpoint(run)

    def load() -> nn.Module:
        model, spec = converted(run, cache, keep=keep)
        check(spec, prefix)
        return model

    identity = {"source": source_digest(prefix), "arch": arch}
    return RunModel(identity, _NORMALIZATION[arch], ARCHITECTURES[arch].image_size, False, load)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one run."""
    parser = cli.Parser(__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="run directory that holds checkpoints/ckpt-*")
    parser.add_argument("target", metavar="DST", type=Path, help="PyTorch file to write, for example run.pt")
    parser.add_argument("--overwrite", action="store_true", help="replace a file made from another source")
    args = parser.parse_args(argv)
    if args.target.suffix in ("", ".json"):
        raise InputError(f"{args.target}: DST should be a file name such as {args.source.name}.pt")
    _, spec = converted(args.source, args.target, keep=True, overwrite=args.overwrite)
    print(f"{args.target}: {spec.arch} for {spec.dataset}, {spec.num_classes} classes")


if __name__ == "__main__":
    cli.run(main)
