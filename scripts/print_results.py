"""Print the statistics that the notebooks saved, a row each: python scripts/print_results.py FIGURE_DIR."""

import libcli as cli

import json
import sys
from pathlib import Path

from libstore.errors import InputError


def main() -> None:
    """Print one table of all results_*.json under a folder, then the figures and notebooks there."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise InputError(f"{' '.join(sys.argv[1:]) or 'nothing'}: not a folder of results, such as results/figures")
    folder = Path(sys.argv[1])
    rows = []
    for path in sorted(folder.glob("results_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if None not in (row["low"], row["high"]) else ""
            value = f"{row['value']:.3f}" if row["value"] is not None else "undefined"
            about = row.get("about", path.stem.removeprefix("results_"))
            rows.append((row["study"], about, row["statistic"], value, interval, row["published"], row["verdict"]))
    header = ("study", "of", "statistic", "here", "95 % CI", "published", "holds here?")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in (header, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for pattern in ("*.html", "*.png"):
        for path in sorted(folder.glob(pattern)):
            print(path)


if __name__ == "__main__":
    cli.run(main)
