"""What the examples share: an ensemble, its scores and the figure of Link 1 for any data set and network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import calc_curv_fz_models
import train_fz_models
from libplots.figures import score_against_memorization
from libscores.link1 import link1
from libstore.config import load_config
from libstore.results import save_figure
from libstore.scored_ensemble import ScoredEnsemble


def parser(text: str | None, runs: int = 20) -> argparse.ArgumentParser:
    """Return a parser with the flags that all examples have."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", default=str(runs), help="networks to train (default %(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/examples"), help="where results go")
    return made


def study(folder: Path, dataset: str, arch: str, *training: str, scoring: tuple[str, ...] = (), name: str) -> Path:
    """Train an ensemble, score it, draw Link 1, and return the path of the figure.

    Args:
        folder: Where everything goes.
        dataset: As --dataset takes it.
        arch: As --arch takes it.
        training: Further flags of train_fz_models.py.
        scoring: Further flags of calc_curv_fz_models.py.
        name: Names of the data set and of the network on disk, <dataset>_<arch>.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.json"
    keys = {f"{name}_dir": name for name in ("fz_model", "private_model", "score", "figure")}
    config_file.write_text(json.dumps({"data_dir": str(load_config().data_dir), **keys}))
    both = ["--dataset", dataset, "--arch", arch, "--config", str(config_file)]
    train_fz_models.main([*both, *training])
    calc_curv_fz_models.main([*both, *scoring])

    config, (data, network) = load_config(config_file), name.split("_", 1)
    places = config.fz_models(data), config.fz_score_dir(data)
    ensemble = ScoredEnsemble.find(*places, data, network, "0.7", value="prob")
    result = link1(ensemble.read, len(ensemble.runs), len(ensemble.examples))
    print(f"{name}: Spearman(memorization, curvature) {result.links['curvature'].similarity['Spearman']}")
    save_figure(score_against_memorization(name, result), config.figure_dir, f"link1_{name}")
    return config.figure_dir / f"link1_{name}.png"
