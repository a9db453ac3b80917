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
from libcli.private import add_private_training, read_private_training

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from libstore.comparable import of_these_weights
from libstore.config import load_config
from libstore.private_models import FORMAT, private_model_name
from libstore.store import Output, arrays_bytes, exclusive, made_before, provenance, sha256
from libtrain.settings import DPSettings

if TYPE_CHECKING:
    from libtrain.private_study import Study


class Model(NamedTuple):
    """A model to train.

    Attributes:
        study: What it is trained on.
        dp: How.
        weights: Where its weights go.
        arrays: Where goes what it makes of the examples.
        state: Where it is kept how far the training is.
        finished: Whether weights and arrays are there.
    """

    study: Study
    dp: DPSettings
    weights: Output
    arrays: Output
    state: Output
    finished: bool


def _finished(weights: Output, arrays: Output, *, overwrite: bool) -> bool:
    there = all([output.finished(overwrite=overwrite) for output in (weights, arrays)])
    return there and of_these_weights(arrays.path, weights.path)


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add_private_training(parser)
    text = "end of the model's name, * for its seed"
    parser.add_argument("--suffix", type=cli.numbered_name, default="seed_*", help=text)
    text = "epsilons of more models to train after the first (default: none)"
    parser.add_argument("--more_epsilons", type=cli.positive_float, nargs="+", default=[], metavar="EPSILON", help=text)
    text = "seeds of more models to train, of all these epsilons (default: none)"
    parser.add_argument("--more_seeds", type=cli.non_negative_int, nargs="+", default=[], metavar="SEED", help=text)
    args = parser.parse_args(argv)
    cli.check_numbers("--more_seeds", [args.seed, *args.more_seeds], {"--suffix": args.suffix})
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train the models that are not there yet."""
    args = parse(argv)
    from libmodels.checkpoints import model_bytes
    from libmodels.devices import describe_device, resolve_device
    from libtrain.dp_training import kept_plan, train_private
    from libtrain.private_study import EpochLog, load_study, plan_privacy
    from libtrain.training import run_arrays
    from libtrain.unfinished import Unfinished

    chosen, seeds = read_private_training(args), [args.seed, *args.more_seeds]
    device = resolve_device(args.device, deterministic=args.deterministic)
    config, anew = load_config(args.config), args.overwrite or not args.resume
    subsets = {seed: args.train_subset and cli.numbered(args.train_subset, seed) for seed in seeds}
    studies: dict[str | None, Study] = {}
    for subset in subsets.values():
        if subset not in studies:
            on_subset = chosen._replace(study=replace(chosen.study, train_subset=subset))
            studies[subset] = load_study(*on_subset, config.data_dir, like=next(iter(studies.values()), None))

    def look_at(seed: int, epsilon: float) -> Model:
        """Say what is there of a model; raises InputError where that is of other settings."""
        study, dp = studies[subsets[seed]], replace(chosen.settings, epsilon=epsilon, seed=seed)
        suffix = args.suffix.replace("*", str(seed))
        name = private_model_name(study.data.name, study.spec.arch, epsilon, suffix)
        folder, settings = config.private_models(study.data.name) / name, study.describe(dp) | {"suffix": suffix}
        weights, arrays = (Output(folder / file, settings, FORMAT) for file in ("model.pt", "aux_arrays.npz"))
        state = Output(folder / "state.pt", settings | {"device": device.type}, FORMAT)
        return Model(study, dp, weights, arrays, state, _finished(weights, arrays, overwrite=args.overwrite))

    def train(model: Model) -> int:
        """Do what is missing of a model; return the signal that came too late to stop it, else 0."""
        study, dp, weights, arrays, state, finished = model
        folder, calibrations = state.path.parent, config.private_models(study.data.name) / "calibrations"
        trainer = None
        if not finished:  # whatever is refused is refused before the folder is touched
            plan = (None if anew else kept_plan(state)) or plan_privacy(dp, study.planned, calibrations)
            trainer = study.trainer(dp, plan, device)
        with exclusive(folder):
            if trainer is None or _finished(weights, arrays, overwrite=args.overwrite):
                print(f"{folder}: finished before, skipped", flush=True)
                state.remove()
                return 0
            if anew:
                state.remove()
            started, how = time.monotonic(), {"drawn": study.drawn} if study.drawn else {}
            made_by = provenance(made_before(state.path), **describe_device(device), **how)
            with cli.stop_requests() as stopping, EpochLog(folder.name, dp, plan, calibrations) as log:
                unfinished = Unfinished(state, save_every=args.save_every, stopping=stopping, made_by=made_by)
                train_private(trainer, unfinished, report=log)
            privacy = plan.record(dp) | {"empty_batches": trainer.empty_batches}
            result, losses = run_arrays(trainer.model, study.data, study.test, study.rows)
            accuracy = float(result.correctness["test"].mean())
            outcome = {"test_loss": float(losses.mean(dtype=float)), "test_accuracy": accuracy}
            made_by |= {"seconds": round(time.monotonic() - started, 3), "privacy": privacy, "outcome": outcome}
            content = model_bytes(trainer.model, study.spec, privacy=privacy)
            arrays.save(arrays_bytes(**result.to_dict(), loss_test=losses), made_by, weights_sha256=sha256(content))
            weights.save(content, made_by)
            state.remove()
        spent = f"epsilon {plan.spent_epsilon:.4g} spent with noise multiplier {plan.noise_multiplier:g}"
        print(f"{folder}: test accuracy {accuracy:.4f}, loss {outcome['test_loss']:.4f}, {spent}", flush=True)
        return stopping()

    epsilons = (args.epsilon, *args.more_epsilons)
    cli.one_after_another(train, [look_at(seed, epsilon) for seed in seeds for epsilon in epsilons])


if __name__ == "__main__":
    cli.run(main)
