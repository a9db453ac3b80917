"""Sentences, one JSON object a line with `document` and `label`: an embedding, its mean, and a network on that.

    python examples/sentences.py train.jsonl test.jsonl [--runs 20]

--tokens says that numbers are words, not pixels; --input_module names the part at whose output they are perturbed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

WORDS, LENGTH = 2000, 24


class Reader(nn.Module):
    """A bag of words with a hidden layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.rest = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits for token ids (B, LENGTH)."""
        return self.rest(self.embedding(tokens).mean(1))


def tokens(files: dict[str, Path], target: Path) -> None:
    """Write sentences as the numbers of their words; 0 is a rare word or none."""
    rows = {part: [json.loads(line) for line in path.open(encoding="utf-8")] for part, path in files.items()}
    words = Counter(word for row in rows["train"] for word in row["document"].split())
    number = {word: i for i, (word, _) in enumerate(words.most_common(WORDS - 1), 1)}
    arrays: dict[str, Any] = {f"{part}_y": np.array([row["label"] for row in rows[part]]) for part in files}
    for part in files:
        texts = [[number.get(word, 0) for word in row["document"].split()[:LENGTH]] for row in rows[part]]
        arrays[f"{part}_x"] = np.array([text + [0] * (LENGTH - len(text)) for text in texts])
    np.savez(target, **arrays)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the study and return the path of the figure."""
    from common import study

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--runs", default="20", help="networks to train (default 20)")
    parser.add_argument("--out", type=Path, default=Path("results/examples"), help="where results go")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokens({"train": args.train, "test": args.test}, args.out / "sentences.npz")
    data, network = str(args.out / "sentences.npz"), f"{__file__}:Reader"
    training = ("--tokens", "--stop_run", args.runs, "--epochs", "20", "--lr", "0.5")
    scoring = ("--tokens", "--input_module", "embedding")
    return study(args.out, data, network, *training, scoring=scoring, name="sentences_Reader")


if __name__ == "__main__":
    print(main())
