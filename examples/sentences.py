"""Sentences, a JSON object a line with `document` and `label`: python examples/sentences.py train.jsonl test.jsonl.

The network is an embedding, its mean over the words, and two layers on that.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
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


def tokens(train: Path, test: Path, target: Path) -> None:
    """Write sentences as the numbers of their words; 0 is a rare word or none."""
    texts, others = (pd.read_json(path, lines=True) for path in (train, test))
    target.parent.mkdir(parents=True, exist_ok=True)
    words = Counter(" ".join(texts.document).split())
    number = {word: i for i, (word, _) in enumerate(words.most_common(WORDS - 1), 1)}

    def rows(table: pd.DataFrame) -> list[list[int]]:
        return [[number.get(word, 0) for word in (text.split() + [""] * LENGTH)[:LENGTH]] for text in table.document]

    np.savez(target, train_x=rows(texts), train_y=texts.label, test_x=rows(others), test_y=others.label)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the study and return the path of the figure."""
    import common

    parser = common.parser(__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    args = parser.parse_args(argv)
    tokens(args.train, args.test, args.out / "sentences.npz")
    choices = (str(args.out / "sentences.npz"), f"{__file__}:Reader", "--tokens")
    training = ("--stop_run", args.runs, "--epochs", "20", "--lr", "0.5")
    scoring = ("--tokens", "--input_module", "embedding")  # numbers are words, perturbed where they are embedded
    return common.study(args.out, *choices, *training, scoring=scoring, name="sentences_Reader")


if __name__ == "__main__":
    print(main())
