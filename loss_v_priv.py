"""Link 2, step 3: test loss against epsilon, with the curve that theory suggests.

    python loss_v_priv.py --dataset mnist --arch smallcnn

Means over seeds with 95 % intervals, the slope of ln loss on ln epsilon, and the fit loss = a + b exp(-c epsilon) with
a test of it (arXiv 2402.18726, Section 5.2), scored and plotted in one run.

Inputs: <private_model_dir>/<model>/aux_arrays.npz of train_dp.py. Outputs: <score_dir>/loss_v_priv/<dataset>_<arch>.npy
(mean test loss by epsilon and seed, NaN where there is no model) with a sidecar that holds both, and in figure_dir
loss_v_priv_<dataset>_<arch>.png and .pdf and results_link2_loss_<dataset>_<arch>.json. With another --suffix than the
default all of them end in it, for example <dataset>_<arch>_memorization_seed.npy. Takes seconds.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_private_models, read_private_models

from collections.abc import Sequence

import numpy as np

from libstore.config import load_config
from libstore.private_models import is_private_model, tabulate
from libstore.results import file_name, save_figure, save_results
from libstore.store import Output, array_bytes, exclusive, provenance

SUFFIX = "seed_*"
"""The models of Link 2; what belongs to others has their suffix in its name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Collect the losses, fit, save, plot."""
    parser = cli.Parser(__doc__)
    add_private_models(parser, suffix=SUFFIX)
    cli.add_overwrite(parser)
    args = parser.parse_args(argv)
    from libplots.figures import loss_against_epsilon
    from libplots.link2 import fit_row, fit_words, trend_rows
    from libscores.link2 import FORMAT, fit_curve, loss_curve, seed_means, trend
    from libscores.statistics import NOT_NEGATIVE
    from libscores.verdicts import falls

    config = load_config(args.config)
    models, dataset, arch = read_private_models(args, config)
    root, score_dir = config.private_models(dataset), config.private_score_dir(dataset)
    epsilons, seeds, losses = tabulate(models, [float(np.mean(m.test_losses(), dtype=float)) for m in models])

    about = [dataset, arch, *([] if args.suffix in (SUFFIX, "*") else [file_name(args.suffix)])]
    name = "_".join(about)
    digests = {model.name: model.weights_sha256 for model in models}
    settings = {"epsilons": epsilons.tolist(), "seeds": seeds.tolist(), "models": digests}
    path, inputs = score_dir / "loss_v_priv" / f"{name}.npy", ("models", "epsilons", "seeds")
    output = Output(path, settings, FORMAT, inputs)
    with exclusive(output.path.parent):
        if not output.finished(overwrite=args.overwrite, is_there=lambda model: is_private_model(root / model)):
            output.save(array_bytes(losses), provenance())

    means, moves = seed_means(losses, NOT_NEGATIVE), trend(epsilons, losses)
    fit = fit_curve(loss_curve, epsilons, losses) if len(epsilons) > 3 else None
    save_figure(loss_against_epsilon(name, epsilons, losses, means, fit), config.figure_dir, f"loss_v_priv_{name}")
    rows = trend_rows("test loss", moves, "falls (Sec. 5.2)", falls(moves.slope))
    if fit:
        rows.append(fit_row("loss = a + b exp(-c eps)", fit))
    save_results(config.figure_dir, "link2_loss", about, rows)
    for epsilon, mean, row in zip(epsilons, means, losses, strict=True):
        print(f"epsilon {epsilon:g}: test loss {mean} over {np.isfinite(row).sum()} seeds")
    if fit:
        parameters = ", ".join(f"{key} = {value}" for key, value in fit.parameters.items())
        print(f"loss = a + b exp(-c epsilon): {parameters}, {fit_words(fit)}")
    else:
        print("no fit: that takes at least 4 values of epsilon")
    print(f"{output.path} and figure {config.figure_dir / f'loss_v_priv_{name}.png'}")


if __name__ == "__main__":
    cli.run(main)
