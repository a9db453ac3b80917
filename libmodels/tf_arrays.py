"""Writes the arrays of a TensorFlow checkpoint to a file, in a process that never sees PyTorch: PREFIX OUT.npz.

`names` holds the variables' paths, `array_0`, `array_1`, ... the values in that order: an .npz member must not carry a
name that comes from a downloaded file. Exit status UNREADABLE says that TensorFlow cannot read the checkpoint; the
reason is the last line on stderr.

Started by `libmodels.tf_checkpoint` as a file, not as a module, so that nothing of this project is imported.
"""

from __future__ import annotations

import sys

import numpy as np

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
UNREADABLE = 3


def main(prefix: str, target: str) -> None:
    """Read `prefix` and write `target`."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        names = sorted(set(reader.get_variable_to_shape_map()) - {OBJECT_GRAPH})
        arrays = {f"array_{i}": np.asarray(reader.get_tensor(name)) for i, name in enumerate(names)}
    except Exception as error:
        print((str(error).strip().splitlines() or [type(error).__name__])[0], file=sys.stderr)
        sys.exit(UNREADABLE)
    with open(target, "wb") as out:
        np.savez(out, allow_pickle=False, names=np.array(names, str), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
