"""The examples, run as a user runs them, to a figure at small size; and the lines of the README that score a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT
from PIL import Image

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: object) -> str:
    command = [sys.executable, *map(str, words)]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def figure(printed: str, folder: Path) -> np.ndarray:
    """Open the figure whose path is the last line printed, and check that it is not blank."""
    path = folder / printed.strip().splitlines()[-1]
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.std() > 10
    assert re.search(r"Spearman\(memorization, curvature\) -?0\.\d+ \[", printed), printed
    return pixels


def test_own_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 25), ("val", 5)):
        for number, name in enumerate(("circles", "squares", "stripes")):
            (tmp_path / "shapes" / part / name).mkdir(parents=True)
            for i in range(count):
                size = int(rng.integers(24, 40))  # images of different sizes
                pixels = rng.integers(0, 256, (size, size, 3)) // 2
                pixels[: size // 2, :, number] += 100
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(tmp_path / "shapes" / part / name / f"{i}.png")
    script = ROOT / "examples/own_images.py"
    printed = run(tmp_path, script, "shapes", "--runs", 6, "--epochs", 2, "--image_size", 28)
    figure(printed, tmp_path)
    scores = list(tmp_path.glob("results/examples/**/curv_scores_shapes_smallcnn_0.7_5_0.001.npy"))
    assert len(np.load(scores[0])) == 75


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "results" / "examples").mkdir(parents=True)
    printed = run(tmp_path, ROOT / "examples/letter_table.py", "--runs", 6, "--data_subset", 300)
    figure(printed, tmp_path)


def test_sentences(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = {0: ["dull", "bad", "slow"], 1: ["fine", "good", "bright"]}
    for part, count in (("train", 120), ("test", 30)):
        lines = []
        for _ in range(count):
            label = int(rng.integers(2))
            text = " ".join(rng.choice(words[label] + ["a", "the", "film"], 8))
            lines.append(json.dumps({"document": text, "label": label}))
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    printed = run(tmp_path, ROOT / "examples/sentences.py", "train.jsonl", "test.jsonl", "--runs", 6)
    figure(printed, tmp_path)


def test_a_network_of_torchvisions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    y = np.arange(60) % 3
    x = (rng.random((60, 3, 32, 32)) * 0.3 + y[:, None, None, None] / 4).astype(np.float32)
    np.savez(tmp_path / "blobs.npz", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9])
    script = ROOT / "examples/torchvision_network.py"
    flags = ("--runs", 4, "--epochs", 1, "--data_subset", 40, "--arch", "torchvision.models:squeezenet1_1")
    printed = run(tmp_path, script, "blobs.npz", *flags)
    figure(printed, tmp_path)


def test_twelve_lines_score_a_model(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (code,) = [block for block in blocks if "import curvature" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    lines = run(tmp_path, "-c", code).splitlines()
    assert len(lines) == 10
    curvatures = [float(re.search(r"curvature ([\d.e+-]+),", line)[1]) for line in lines]  # type: ignore[index]
    assert curvatures == sorted(curvatures, reverse=True) and curvatures[-1] > 0
