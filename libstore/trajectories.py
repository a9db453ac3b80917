"""What a training recorded of its examples: <run>/trajectory.npz, beside the run's arrays.

`index_train` (n,) are positions in the data set, `loss` and `correct` (E, n) the loss of each example and whether it
was right when its batch was trained on in each epoch, before the step; `weight_norm` (E,) the norm of all weights after
each epoch. Where asked for, `input_gradient_norm` (E, n) is the norm of the gradient of that loss by the input, and
`vog` (n,) the variance of gradients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from libstore import safe_pickle
from libstore.comparable import check_content, check_weights, kept
from libstore.errors import InputError

FORMAT = 1
"""To be raised when what a value means changes; results of two formats are never mixed."""
NAME = "trajectory.npz"
_BY_EPOCH = ("loss", "correct", "input_gradient_norm")


def read_trajectory(folder: Path) -> dict[str, np.ndarray]:
    """Read what a run recorded.

    Raises:
        InputError: The file is damaged, of other weights than the run's, or its arrays contradict each other.
    """
    path, arrays = folder / NAME, kept(folder / "aux_arrays.npz")
    one = kept(path)
    if one is None:
        raise InputError(f"{path}: its sidecar is missing; train the run again with --record")
    check_content(one)
    claims = [
        (path, one.sidecar.get("weights_sha256")),
        (folder, arrays.sidecar.get("weights_sha256") if arrays else None),
    ]
    check_weights(claims, "train the run again with --record")
    found = safe_pickle.load_npz(path)
    for name in ("index_train", "weight_norm", "loss", "correct"):
        if name not in found:
            raise InputError(f"{path}: key {name!r} is missing; it holds {', '.join(sorted(found))}")
    n, epochs = len(found["index_train"]), len(found["weight_norm"])
    shapes = {name: (epochs, n) for name in _BY_EPOCH} | {"vog": (n,)}
    for name, shape in shapes.items():
        if name in found and found[name].shape != shape:
            raise InputError(f"{path}: key {name!r} has shape {found[name].shape}, expected {shape}")
        if name in found and not np.isfinite(found[name]).all():
            raise InputError(f"{path}: key {name!r} holds what is not finite")
    return found
