"""What starting costs: the CPU time of each kind of command beside `python -c "import torch"`, in one run.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeats 5

Every command runs on one thread in a process of its own; what counts is the processor's time (user and system) of the
process and its children. PyTorch is imported before each, and the ratio is to that import: medians of the repeats.
Training and scoring are of next to nothing, so that nearly all of their time is starting. The ratios are what to read:
"goal" is what they should not exceed.
"""

from __future__ import annotations

import libcli as cli

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from libstore.config import load_config

ROOT = Path(__file__).resolve().parent.parent
POINTS = 20


def cpu_seconds(words: Sequence[str], status: int = 0) -> float:
    """Run a command from the top of the repository and return the processor's time that it took."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what Python compiles is kept, as it is by default
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read().decode()
    _, ended, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    process.stderr.close()
    if process.returncode != status:
        sys.exit(f"{' '.join(words)}: status {process.returncode}: {said}")
    return usage.ru_utime + usage.ru_stime


def commands(folder: Path, data_dir: Path) -> list[tuple[str, list[str], float | None, int]]:
    """Return what is measured: a name, the command, the goal for its ratio if it has one, and its exit status."""
    keys = ("fz_model_dir", "private_model_dir", "sensitivity_dir", "score_dir", "figure_dir")
    config = folder / "config.json"
    config.write_text(json.dumps({"data_dir": str(data_dir)} | {key: str(folder / key) for key in keys}))
    kind = ["--config", str(config), "--dataset", "mnist", "--arch", "smallcnn"]
    few = ["--batch_size", "16", "--epochs", "1", "--data_subset", "64"]
    private = ["train_dp.py", *kind, *few, "--epsilon", "8", "--seed"]
    ensemble = ["train_fz_models.py", *kind, "--data_subset", "64", "--stop_run", "1", "--epochs", "1"]
    study = ["sensitivity/compute_sensitivity.py", "--config", str(config), "--arch", "smallcnn", *few]
    study += ["--points", str(POINTS), "--stages", "2", "--save_freq", "2"]
    results = str(folder / "sensitivity_dir" / "res" / "res1.csv")
    scores = [["calc_curv_fz_models.py", *kind], ["calc_curv_private_models.py", *kind]]
    return [
        ("train_dp.py --help", ["train_dp.py", "--help"], None, 0),
        ("train_dp.py with a flag it has not", ["train_dp.py", "--no-such-flag"], None, 2),
        ("train_dp.py, noise not calibrated yet", [*private, "0"], None, 0),
        ("train_dp.py", [*private, "1"], 1.3, 0),
        ("train_dp.py, finished", [*private, "1"], 1.2, 0),
        ("train_fz_models.py", ensemble, 1.3, 0),
        ("train_fz_models.py, finished", ensemble, 1.2, 0),
        ("calc_curv_fz_models.py", scores[0], 1.3, 0),
        ("calc_curv_fz_models.py, finished", scores[0], 1.2, 0),
        ("calc_curv_private_models.py, two models", scores[1], 1.3, 0),
        ("calc_curv_private_models.py, finished", scores[1], 1.2, 0),
        ("compute_sensitivity.py, noise not calibrated yet", study, None, 0),
        ("compute_sensitivity.py, finished", study, 1.2, 0),
        ("renyi_per_instance_sum_compo.py", ["renyi_per_instance_sum_compo.py", results], None, 0),
        ("folds.py", ["sensitivity/folds.py", results, "--fold_size", "5"], None, 0),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--repeats", type=cli.positive_int, default=3, help="times that everything is measured")
    args = parser.parse_args(argv)
    data_dir = load_config(args.config).data_dir
    torch: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {}
    goals: dict[str, float | None] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, words, goal, status in commands(Path(folder), data_dir):
                torch.append(cpu_seconds(["-c", "import torch"]))
                seconds = cpu_seconds(words, status)
                found.setdefault(name, []).append((seconds, seconds / torch[-1]))
                goals[name] = goal
    print(f"{'command':52s} {'CPU s':>6s} {'ratio':>6s} {'goal':>5s}")
    plain = 'python -c "import torch"'
    print(f"{plain:52s} {median(torch):6.2f} {1:6.2f}")
    for name, measured in found.items():
        seconds, ratio = (median(values) for values in zip(*measured, strict=True))
        goal = goals[name]
        print(f"{name:52s} {seconds:6.2f} {ratio:6.2f} {'' if goal is None else f'{goal:5.1f}'}")


if __name__ == "__main__":
    cli.run(main)
