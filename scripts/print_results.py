"""Print the statistics that the notebooks saved, a row each: python scripts/print_results.py FIGURE_DIR [--all].

Rows without a claim, which stand beside others for comparison, take --all. What the verdicts mean: docs/links.md.
"""

import libcli as cli

import json
import sys
from pathlib import Path

from libscores.verdicts import NO_CLAIM
from libstore.errors import InputError


def main() -> None:
    """Print one table of all results_*.json under a folder, then the figures and notebooks there."""
    words = [word for word in sys.argv[1:] if word != "--all"]
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise InputError(f"{' '.join(words) or 'nothing'}: not a folder of results, such as results/figures")
    folder, rows, left_out = Path(words[0]), [], 0
    for path in sorted(folder.glob("results_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["verdict"] == NO_CLAIM and "--all" not in sys.argv:
                left_out += 1
                continue
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if None not in (row["low"], row["high"]) else ""
            value = f"{row['value']:.3f}" if row["value"] is not None else "undefined"
            about = row.get("about", path.stem.removeprefix("results_"))
            rows.append((row["study"], about, row["statistic"], value, interval, row["published"], row["verdict"]))
    header = ("study", "of", "statistic", "here", "95 % CI", "claim", "holds here?")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in (header, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if left_out:
        print(f"\n{left_out} rows without a claim are left out; --all prints them")
    print()
    for pattern in ("*.html", "*.png"):
        for path in sorted(folder.glob(pattern)):
            print(path)


if __name__ == "__main__":
    cli.run(main)
