"""Images per second read, checked, decoded and preprocessed from TFRecords, beside tf.data, in one run.

    python benchmarks/tfrecords.py [--images 600] [--rounds 5] [--workers 2]

Both get the same file of synthetic photographs (500 x 375, quality 95 as in ILSVRC, about 150 kB each) and the same
number of threads, each in a process of its own, in turns. tf.data runs the published input pipeline (parse, decode
with crop, resize, normalise, batch, prefetch) and hands over NumPy arrays transposed for PyTorch, as the published
script does; ours hands over tensors. The ratio of each round is taken; medians are printed. Then, what other choices
would change in the network's input: the accurate DCT, and antialiased resizing as in torchvision's transforms.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BATCH = 32


def photograph(rng: np.random.Generator) -> bytes:
    """Return a JPEG file with the falling spectrum of photographs."""
    from PIL import Image

    height, width = (375, 500) if rng.random() < 0.8 else (500, 375)
    spectrum = np.fft.rfft2(rng.normal(size=(3, height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / width
    pixels = np.fft.irfft2(spectrum / frequency**1.25, s=(height, width))
    pixels = 0.3 * pixels + 0.7 * pixels.mean(0)  # colours are correlated
    pixels = np.clip(120 + 55 * (pixels - pixels.mean()) / pixels.std(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write(path: Path, images: int) -> float:
    """Write the file and return the mean size of an image in kB."""
    from libdata.indexed_tfrecords import encode_example, frame

    rng = np.random.default_rng(0)
    distinct = [photograph(rng) for _ in range(min(images, 100))]
    with path.open("wb") as file:
        for index in range(images):
            image = distinct[index % len(distinct)]
            file.write(frame(encode_example({"index": index, "image/encoded": image, "image/class/label": 1})))
    return sum(map(len, distinct)) / len(distinct) / 1e3


def ours(path: Path, images: int, workers: int) -> float:
    """Return the seconds that libdata.imagenet takes."""
    from libdata.imagenet import stream

    labels = np.zeros(images, dtype=np.int64)
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        count = sum(len(batch.images) for batch in stream(path, labels, batch_size=BATCH, pool=pool))
    assert count == images
    return time.perf_counter() - started


def tf_data(path: Path, images: int, workers: int) -> float:
    """Return the seconds that tf.data takes for the published pipeline."""
    import tensorflow as tf

    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    features |= {name: tf.io.FixedLenFeature([], tf.int64) for name in ("index", "image/class/label")}

    def preprocess(record):
        example = tf.io.parse_single_example(record, features)
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(example["image/encoded"]))
        size = tf.cast(tf.cast(tf.minimum(height, width), tf.float32) * (224 / 256), tf.int32)
        window = tf.stack([(height - size + 1) // 2, (width - size + 1) // 2, size, size])
        image = tf.image.decode_and_crop_jpeg(example["image/encoded"], window, channels=3)
        image = tf.image.resize(tf.image.convert_image_dtype(image, tf.float32)[None], [224, 224])[0]
        return (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], example["image/class/label"], example["index"]

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.TFRecordDataset(str(path)).with_options(options).prefetch(BATCH)
    dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    started = time.perf_counter()
    count = 0
    for batch, _, _ in dataset:
        count += len(np.ascontiguousarray(batch.numpy().transpose(0, 3, 1, 2)))
    assert count == images
    return time.perf_counter() - started


SIDES = {"ours": ours, "tf.data": tf_data}


def measure(side: str, path: Path, images: int, workers: int) -> float:
    """Run one side in a process of its own, twice, and return the seconds of the second time."""
    command = [sys.executable, __file__, "--side", side, str(path), str(images), str(workers)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(result.stdout.split()[-1])


def differences(path: Path, images: int) -> None:
    """Print what the accurate DCT and antialiasing would change."""
    import simplejpeg
    import torch
    import torch.nn.functional as F

    from libdata.imagenet import decode_jpeg, preprocess
    from libdata.indexed_tfrecords import read_images

    changed: dict[str, list[float]] = {"accurate DCT": [], "antialiased resizing": []}
    for image in list(read_images(path, n_examples=images, num_classes=1000))[:50]:
        pixels = decode_jpeg(image.encoded, image.where)
        reference = preprocess(pixels)
        accurate = preprocess(simplejpeg.decode_jpeg(image.encoded, "RGB", fastdct=False))
        changed["accurate DCT"].append(float(np.abs(accurate - reference).mean()))
        size = int(224 / 256 * min(pixels.shape[:2]))
        top, left = ((length - size + 1) // 2 for length in pixels.shape[:2])
        crop = torch.from_numpy(pixels[top : top + size, left : left + size]).permute(2, 0, 1)[None].float() / 255
        smooth = F.interpolate(crop, size=(224, 224), mode="bilinear", antialias=True)[0].numpy()
        mean, std = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        changed["antialiased resizing"].append(float(np.abs((smooth - mean) / std - reference).mean()))
    for name, values in changed.items():
        print(f"{name}: mean absolute change of the normalised input {np.mean(values):.4f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print rates and their ratio."""
    import libcli as cli

    parser = cli.Parser(__doc__)
    parser.add_argument("--images", type=cli.positive_int, default=600, help="records of the file")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, help="rounds; medians are printed")
    parser.add_argument("--workers", type=cli.positive_int, default=os.cpu_count() or 1, help="threads of each side")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train-00000-of-00001")
        size = write(path, args.images)
        print(
            f"{args.images} images of {size:.0f} kB, {args.workers} threads, batches of {BATCH}, {args.rounds} rounds"
        )
        seconds = np.array(
            [[measure(side, path, args.images, args.workers) for side in SIDES] for _ in range(args.rounds)]
        )
        for side, values in zip(SIDES, seconds.T, strict=True):
            print(f"{side}: {args.images / np.median(values):.0f} images/s")
        print(f"ours is {np.median(seconds[:, 1] / seconds[:, 0]):.2f} times as fast")
        differences(path, args.images)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        run, file, count, threads = SIDES[sys.argv[2]], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
        run(file, count, threads)
        print(run(file, count, threads))
    else:
        main()
