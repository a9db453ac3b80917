"""TensorFlow and Sonnet's own numbers for the tests, in a process without PyTorch: python sonnet_oracle.py FOLDER.

Writes into FOLDER: runs in the Feldman-Zhang layout saved by tf.train.Checkpoint, with the inputs and logits that
Sonnet computes for them; called once for all tests (see conftest.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import sonnet as snt
import tensorflow as tf


class ConvBNReLU(snt.Module):
    def __init__(self, channels, kernel, stride=1):
        super().__init__()
        self.conv = snt.Conv2D(channels, kernel, stride=stride, with_bias=False)
        self.bn = snt.BatchNorm(create_scale=True, create_offset=True)

    def __call__(self, x, is_training):
        return tf.nn.relu(self.bn(self.conv(x), is_training))


class Block(snt.Module):
    def __init__(self, narrow, wide):
        super().__init__()
        self.conv1x1 = ConvBNReLU(narrow, 1)
        self.conv3x3 = ConvBNReLU(wide, 3)

    def __call__(self, x, is_training):
        return tf.concat([self.conv1x1(x, is_training), self.conv3x3(x, is_training)], axis=-1)


class Stage(snt.Module):
    def __init__(self, widths, after):
        super().__init__()
        self._body = [Block(*width) for width in widths]
        self._downsample = ConvBNReLU(after, 3, 2) if after else None

    def __call__(self, x, is_training):
        for block in self._body:
            x = block(x, is_training)
        return self._downsample(x, is_training) if self._downsample else x


class SmallInception(snt.Module):
    """The network of the design, under the attribute names its checkpoints have."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = ConvBNReLU(96, 3)
        self.stage1 = Stage([(32, 32), (32, 48)], 160)
        self.stage2 = Stage([(112, 48), (96, 64), (80, 80), (48, 96)], 240)
        self.stage3 = Stage([(176, 160), (176, 160)], None)
        self._pred = snt.Linear(num_classes)

    def __call__(self, x, is_training):
        x = self.conv1(x, is_training)
        for stage in (self.stage1, self.stage2, self.stage3):
            x = stage(x, is_training)
        return self._pred(tf.reduce_max(x, axis=[1, 2]))


def train_a_little(model, shape, classes, rng):
    """Random weights, then three real training-mode steps: averages, hidden sums and counters all differ."""
    model(tf.zeros((1, *shape)), is_training=False)
    for variable in model.trainable_variables:
        if variable.name.endswith(("scale:0", "offset:0", "b:0")) or "logits" in variable.name:
            center, width = (1.0, 0.3) if "scale" in variable.name else (0.0, 0.1 if variable.shape.rank == 1 else 0.03)
            variable.assign(rng.normal(center, width, variable.shape).astype(np.float32))
    optimizer = snt.optimizers.SGD(1e-3)
    for step in range(3):
        x = tf.constant(rng.normal(0.3, 1 + step, (4, *shape)).astype(np.float32))
        labels = tf.constant(rng.integers(classes, size=4))
        with tf.GradientTape() as tape:
            logits = model(x, is_training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def save_run(model, run):
    tf.train.Checkpoint(
        model=model, epoch=tf.Variable(160, dtype=tf.int64), global_step=tf.Variable(62400, dtype=tf.int64)
    ).write(str(run / "checkpoints" / "ckpt-160"))


def main(folder):
    tf.random.set_seed(0)
    rng = np.random.default_rng(0)
    cases = {
        "small_inception": (SmallInception(100), (32, 32, 3), (32, 27), 100),
        "resnet50_v1": (snt.nets.ResNet50(1000), (64, 64, 3), (64, 75), 1000),
        "resnet50_v2": (snt.nets.ResNet50(1000, resnet_v2=True), (64, 64, 3), (64, 75), 1000),
    }
    for name, (model, shape, sizes, classes) in cases.items():
        train_a_little(model, shape, classes, rng)
        run = folder / name
        save_run(model, run)
        for size in sizes:
            x = rng.random((3, size, size, 3), dtype=np.float32)
            np.save(run / f"inputs_{size}.npy", x)
            np.save(run / f"logits_{size}.npy", model(x, is_training=False).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
