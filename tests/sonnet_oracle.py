"""TensorFlow's and Sonnet's own numbers, in a process without PyTorch and without this project's code.

python sonnet_oracle.py FOLDER, once for all tests (see conftest.py). FOLDER holds images and TFRecords made by the
tests; this writes runs in the Feldman-Zhang layout, saved by tf.train.Checkpoint under the released attribute names,
and what TensorFlow computes from all of it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import sonnet as snt
import tensorflow as tf

H = 0.05


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
    """Random weights, then three training steps, so that averages, hidden sums and counters all differ."""
    model(tf.zeros((1, *shape)), is_training=False)
    for variable in model.trainable_variables:
        kind = variable.name.rsplit("/", 1)[1]
        if kind == "scale:0":
            variable.assign(rng.normal(1.0, 0.3, variable.shape).astype(np.float32))
        elif kind in ("offset:0", "b:0"):
            variable.assign(rng.normal(0.0, 0.1, variable.shape).astype(np.float32))
        elif "logits" in variable.name:
            variable.assign(rng.normal(0.0, 0.003, variable.shape).astype(np.float32))
    optimizer = snt.optimizers.SGD(1e-3)
    for step in range(3):
        x = tf.constant(rng.normal(0.3, 1 + step, (4, *shape)).astype(np.float32))
        labels = tf.constant(rng.integers(classes, size=4))
        with tf.GradientTape() as tape:
            logits = model(x, is_training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def checkpoint(model):
    counters = {name: tf.Variable(value, dtype=tf.int64) for name, value in (("epoch", 160), ("global_step", 62400))}
    return tf.train.Checkpoint(model=model, **counters)


def write_logits(model, run, sizes, rng):
    for size in sizes:
        x = rng.random((3, size, size, 3), dtype=np.float32)
        np.save(run / f"inputs_{size}.npy", x)
        np.save(run / f"logits_{size}.npy", model(x, is_training=False).numpy())


def write_aux(run, correct, n_train, index_test, correct_test, rng):
    chosen = rng.permutation(len(correct))
    train, removed = np.sort(chosen[:n_train]), np.sort(chosen[n_train:])
    np.savez(
        run / "aux_arrays.npz", index_train=train, index_removed=removed, index_test=index_test, subsample_idx=train,
        correctness_train=correct[train], correctness_removed=correct[removed], correctness_test=correct_test,
    )  # fmt: skip


def bytes_feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def int_feature(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def cifar(folder, rng):
    """An ensemble of two runs on small CIFAR-100-like splits, kept in TFDS's order."""
    model = SmallInception(100)
    train_a_little(model, (32, 32, 3), 100, rng)
    logits_run = folder / "small_inception"
    checkpoint(model).write(str(logits_run / "checkpoints" / "ckpt-160"))
    write_logits(model, logits_run, (32, 27), rng)

    images, labels, correct, order = {}, {}, {}, {}
    for split, count in (("train", 64), ("test", 16)):
        colours = rng.integers(0, 256, (count, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
        images[split] = np.clip(colours + rng.integers(-20, 21, (count, 32, 32, 3)), 0, 255).astype(np.uint8)
        if split == "train":
            images[split][[9, 40]] = images[split][3]  # 3, 9 and 40 are twins
        predicted = model(images[split].astype(np.float32) / 255, is_training=False).numpy().argmax(1)
        labels[split] = np.where(rng.random(count) < 0.5, predicted, (predicted + 1) % 100)
        if split == "train":
            labels[split][[3, 9, 40]] = predicted[3], predicted[3], (predicted[3] + 1) % 100
        correct[split] = predicted == labels[split]
        keys = sorted((int(hashlib.md5(f"{split}{i}".encode()).hexdigest(), 16), i) for i in range(count))
        order[split] = np.array([i for _, i in keys])
        with tf.io.TFRecordWriter(str(folder / "tfds" / f"cifar100-{split}.tfrecord-00000-of-00001")) as writer:
            for position in order[split]:
                feature = {
                    "image": bytes_feature(tf.io.encode_png(images[split][position]).numpy()),
                    "label": int_feature(labels[split][position]),
                    "id": bytes_feature(f"{split}_{position:05d}".encode()),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    for run in ("0", "3"):
        where = folder / "fz_models" / "cifar100-inception" / "0.7" / run
        saved = checkpoint(model).save(str(where / "checkpoints" / "ckpt"))  # the file is then named ckpt-1
        assert saved.endswith("ckpt-1")
        write_aux(where, correct["train"][order["train"]], 45, np.arange(16), correct["test"][order["test"]], rng)

    probes = np.load(folder / "probes.npy").astype(np.float32)  # (examples, n_probes, 3, 32, 32)
    curvature, trace = [], []
    for x, y, signs in zip(images["train"], labels["train"], probes, strict=False):
        x, signs = tf.constant(x[None] / 255, tf.float32), signs.transpose(0, 2, 3, 1)

        def gradient(x, y=y):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits([y], model(x, is_training=False))
            return tape.gradient(loss, x).numpy()[0]

        differences = np.stack([gradient(x + H * v) for v in signs]) - gradient(x)
        curvature.append(np.linalg.norm(differences.reshape(len(signs), -1), axis=1).mean() / H)
        trace.append((signs * differences).sum((1, 2, 3)).mean() / H)
    np.savez(
        folder / "cifar.npz", curvature=curvature, trace=trace,
        **{f"{what}_{split}": value[split] for split in images
           for what, value in (("images", images), ("labels", labels), ("correct", correct), ("order", order))},
    )  # fmt: skip


def imagenet_input(encoded):
    """The evaluation input of those models, written with TensorFlow's own operations."""
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded))
    size = tf.cast(tf.cast(tf.minimum(height, width), tf.float32) * (224 / 256), tf.int32)
    window = tf.stack([(height - size + 1) // 2, (width - size + 1) // 2, size, size])
    image = tf.image.convert_image_dtype(tf.image.decode_and_crop_jpeg(encoded, window, channels=3), tf.float32)
    image = tf.image.resize(image[None], [224, 224])[0]
    return (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def imagenet(folder, rng):
    """Two ResNet-50 versions, and one run on the TFRecords that this project built."""
    models = {}
    for name, v2 in (("resnet50_v1", False), ("resnet50_v2", True)):
        model = models[name] = snt.nets.ResNet50(1000, resnet_v2=v2)
        train_a_little(model, (64, 64, 3), 1000, rng)
        if not v2:  # predictions among the three classes of the tests' images
            bias = next(v for v in model.trainable_variables if v.shape == (1000,) and "logits" in v.name)
            bias.assign(np.where(np.arange(1000) < 3, 0, -30).astype(np.float32))
        run = folder / (name if v2 else "fz_models/imagenet-resnet50/0.7/1")
        checkpoint(model).write(str(run / "checkpoints" / "ckpt-100"))
        write_logits(model, run, (64, 75), rng)

    names = {"index": tf.int64, "image/encoded": tf.string, "image/class/label": tf.int64, "image/filename": tf.string,
             "image/class/synset": tf.string, "image/height": tf.int64, "image/width": tf.int64,
             "image/colorspace": tf.string, "image/channels": tf.int64, "image/format": tf.string}  # fmt: skip
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in names.items()}
    files = sorted(str(path) for path in (folder / "tfrecords").glob("train-*-of-*"))
    read: dict[str, list] = {name: [] for name in names if name != "image/encoded"}
    images, written = [], tf.io.TFRecordWriter(str(folder / "tf_written.tfrecord"))
    for record in tf.data.TFRecordDataset(files):
        written.write(record.numpy())
        example = tf.io.parse_single_example(record, features)
        images.append(imagenet_input(example["image/encoded"]).numpy())
        for name, values in read.items():
            values.append(example[name].numpy())
    written.close()
    inputs = np.stack(images)
    predicted = models["resnet50_v1"](inputs, is_training=False).numpy().argmax(1)
    index = np.array(read["index"])
    correct = np.empty(len(index), dtype=bool)
    correct[index] = predicted + 1 == np.array(read["image/class/label"])
    write_aux(
        folder / "fz_models/imagenet-resnet50/0.7/1", correct, len(correct) - 3, np.arange(0), np.empty(0, bool), rng
    )
    columns = {name.replace("/", "_"): np.array(values) for name, values in read.items()}
    np.savez(folder / "imagenet.npz", allow_pickle=False, inputs=inputs, predicted=predicted, **columns)
    for kind in ("cmyk", "plain_cmyk", "png"):
        image = tf.io.decode_image((folder / f"{kind}.image").read_bytes(), channels=3)
        again = tf.io.encode_jpeg(image, format="rgb", quality=100)
        np.save(folder / f"{kind}_pixels.npy", image.numpy())
        np.save(folder / f"{kind}.npy", tf.io.decode_jpeg(again, channels=3).numpy())


def main(folder):
    for write, seed in ((cifar, 0), (imagenet, 3)):  # 3: the network is right on some of the images
        tf.random.set_seed(0)
        write(folder, np.random.default_rng(seed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
