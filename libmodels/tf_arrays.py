"""Reads TensorFlow checkpoints in a process that never sees PyTorch: prefixes as JSON lines in, answers out.

The arrays go to the open file whose descriptor is the argument.

Started by `libmodels.tf_checkpoint` as a file, not as a module, so that nothing of this project is imported.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever TensorFlow prints is no answer
    import tensorflow as tf

    out = os.fdopen(int(sys.argv[1]), "wb")
    for line in sys.stdin:
        try:
            reader = tf.train.load_checkpoint(json.loads(line))
            names = sorted(set(reader.get_variable_to_shape_map()) - {OBJECT_GRAPH})
            # Arrays are numbered: an .npz member must not carry a name that comes from a downloaded file.
            arrays = {f"array_{i}": np.asarray(reader.get_tensor(name)) for i, name in enumerate(names)}
            out.seek(0)
            out.truncate()
            np.savez(out, allow_pickle=False, **arrays)
            out.flush()
            answer: dict[str, list[str] | str] = {"names": names}
        except Exception as error:  # reported to the parent, which names the checkpoint
            answer = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
