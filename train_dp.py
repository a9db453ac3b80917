"""Links 2 and 3, step 1: train one network with DP-SGD for one data set, epsilon and seed.

    python train_dp.py --dataset mnist --arch smallcnn --epsilon 10 --seed 0

Poisson sampling at exactly B/N, per-example clipping, noise calibrated once; (epsilon, delta)-differential privacy
for adding or removing one training example (Abadi et al., arXiv 1607.00133). The loss and accuracy in the log and
the saved arrays are not private: they are for the study.

Inputs: the data set under data_dir, optionally an .npy index of training examples (--train_subset). Outputs:
<private_model_dir>/<dataset>_<arch>_eps_<epsilon>_<suffix>/model.pt and aux_arrays.npz, each with a JSON sidecar. With
--more_epsilons and --more_seeds one process trains several models, one after another, to the same files as a process
for each: all epsilons for every seed. * in --train_subset is the seed, too.
A finished model is skipped; a killed or stopped run goes on where it was, to the same bytes. Measured: about 9 s
for the small CNN, 2,000 digits, batches of 64 and 20 epochs on one CPU thread.
"""

from __future__ import annotations

import libcli as cli
from libcli.private import add_private_training, check_numbers, numbered, numbered_name, read_private_training

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from libstore.config import load_config
from libstore.private_models import private_model_name

if TYPE_CHECKING:
    from libtrain.private_study import Study


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add_private_training(parser)
    text = "end of the model's name, * for its seed"
    parser.add_argument("--suffix", type=numbered_name, default="seed_*", help=text)
    text = "epsilons of more models to train after the first (default: none)"
    parser.add_argument("--more_epsilons", type=cli.positive_float, nargs="+", default=[], metavar="EPSILON", help=text)
    text = "seeds of more models to train, of all these epsilons (default: none)"
    parser.add_argument("--more_seeds", type=cli.non_negative_int, nargs="+", default=[], metavar="SEED", help=text)
    args = parser.parse_args(argv)
    check_numbers("--more_seeds", [args.seed, *args.more_seeds], {"--suffix": args.suffix})
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train the models that are not there yet."""
    args = parse(argv)
    from libmodels.devices import resolve_device
    from libtrain.private_study import load_study
    from libtrain.private_training import DPTraining

    chosen, seeds = read_private_training(args), [args.seed, *args.more_seeds]
    device = resolve_device(args.device, deterministic=args.deterministic)
    config, anew = load_config(args.config), args.overwrite or not args.resume
    subsets = {seed: args.train_subset and numbered(args.train_subset, seed) for seed in seeds}
    studies: dict[str | None, Study] = {}
    for subset in subsets.values():
        if subset not in studies:
            on_subset = chosen._replace(study=replace(chosen.study, train_subset=subset))
            studies[subset] = load_study(*on_subset, config.data_dir, like=next(iter(studies.values()), None))

    def training(seed: int, epsilon: float) -> DPTraining:
        study, suffix = studies[subsets[seed]], args.suffix.replace("*", str(seed))
        name = private_model_name(study.data.name, study.spec.arch, epsilon, suffix)
        dp, folder = replace(chosen.settings, epsilon=epsilon, seed=seed), config.private_models(study.data.name) / name
        return DPTraining(study, dp, folder, suffix, device, args.save_every, anew, args.overwrite)

    epsilons = (args.epsilon, *args.more_epsilons)
    cli.one_after_another(DPTraining.train, [training(seed, epsilon) for seed in seeds for epsilon in epsilons])


if __name__ == "__main__":
    cli.run(main)
