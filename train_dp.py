"""Links 2 and 3, step 1: train one network with DP-SGD for one data set, epsilon and seed.

    python train_dp.py --dataset mnist --arch smallcnn --epsilon 10 --seed 0

Poisson sampling at exactly B/N, per-example clipping, noise calibrated once; (epsilon, delta)-differential privacy
for adding or removing one training example (Abadi et al., arXiv 1607.00133). The loss and accuracy in the log and
the saved arrays are not private: they are for the study.

Inputs: the data set under data_dir, optionally an .npy index of training examples (--subset). Outputs:
<private_model_dir>/<dataset>_<arch>_eps_<epsilon>_<suffix>/model.pt and aux_arrays.npz, each with a JSON sidecar.
A finished model is skipped; a killed or stopped run goes on where it was, to the same bytes. Measured: about 9 s
for the small CNN, 2,000 digits, batches of 64 and 20 epochs on one CPU thread.
"""

from __future__ import annotations

import libcli as cli

import re
import time
from collections.abc import Sequence

import numpy as np
import torch

from libmodels.checkpoints import model_bytes
from libmodels.devices import describe_device, resolve_device
from libstore.config import load_config
from libstore.fz import RunArrays
from libstore.private_models import FORMAT, private_model_name
from libstore.store import Output, arrays_bytes, exclusive, made_before, provenance, sha256
from libtrain.dp_options import (
    EpochLog,
    add_dp_options,
    dp_settings,
    load_study,
    plan_privacy,
    seeds_of,
    settings_of,
)
from libtrain.dp_training import DPTrainer, read_state, seeded_model, train_private
from libtrain.training import example_losses, predict


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add_dp_options(parser)
    parser.add_argument("--suffix", help="end of the model's name (default: seed_<seed>)")
    args = parser.parse_args(argv)
    args.suffix = args.suffix or f"seed_{args.seed}"
    if not re.fullmatch(r"[\w.=+-]+", args.suffix):
        parser.error(f"argument --suffix: {args.suffix!r} holds more than letters, digits and _ . = + -")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train the model if it is not there yet."""
    args = parse(argv)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    study = load_study(args, config.data_dir)
    model = seeded_model(study.spec, seeds_of(args)["init"]).to(device)
    folder = config.private_model_dir / private_model_name(args.dataset, args.arch, args.epsilon, args.suffix)
    settings = settings_of(args, study) | {"suffix": args.suffix}
    with exclusive(folder):
        weights, arrays, state = (
            Output(folder / name, settings | more, FORMAT)
            for name, more in (("model.pt", {}), ("aux_arrays.npz", {}), ("state.pt", {"device": device.type}))
        )
        if args.overwrite or not args.resume:
            state.remove()
        if weights.finished(overwrite=args.overwrite) and arrays.finished(overwrite=args.overwrite):
            print(f"{folder}: finished before, skipped", flush=True)
            state.remove()
            return
        kept, started = read_state(state), time.monotonic()
        privacy = kept["privacy"] if kept else plan_privacy(args, study.planned)
        made_by = provenance(made_before(state.path), **describe_device(device))
        images, labels, test_images, test_labels = study.tensors(device)
        trainer = DPTrainer(model, images, labels, dp_settings(args, privacy), torch.from_numpy(study.rows))
        with cli.stop_requests() as stopping, EpochLog(folder.name, privacy, args.epochs) as log:
            if not train_private(
                trainer, state, kept=kept, extra={"privacy": privacy}, made_by=made_by, save_every=args.save_every,
                report=log, stopping=stopping,
            ):  # fmt: skip
                at = f"stopped after step {trainer.step} of {privacy['steps']}"
                raise cli.Stopped(stopping(), f"{folder}: {at}; run the same command again to go on")

        privacy = privacy | {"empty_batches": trainer.empty_batches}
        correct, prob = predict(model, images, labels)
        test_correct, test_prob = predict(model, test_images, test_labels)
        test_loss = example_losses(model, test_images, test_labels)
        removed = np.setdiff1d(np.arange(len(labels)), study.rows)
        groups, index = {"train": study.rows, "removed": removed}, study.data.index
        result = RunArrays(
            index={group: index[rows] for group, rows in groups.items()} | {"test": study.test.index},
            correctness={group: correct[rows] for group, rows in groups.items()} | {"test": test_correct},
            prob={group: prob[rows] for group, rows in groups.items()} | {"test": test_prob},
            subsample_idx=index[study.rows],
        )
        outcome = {"test_loss": float(test_loss.mean(dtype=float)), "test_accuracy": float(test_correct.mean())}
        seconds = round(time.monotonic() - started, 3)
        made_by |= {"seconds": seconds, "privacy": privacy, "outcome": outcome}
        content = model_bytes(model, study.spec, privacy=privacy)
        arrays.save(arrays_bytes(**result.to_dict(), loss_test=test_loss), made_by, weights_sha256=sha256(content))
        weights.save(content, made_by)
        state.remove()
    spent = f"epsilon {privacy['spent_epsilon']:.4g} spent with noise multiplier {privacy['noise_multiplier']:g}"
    print(
        f"{folder}: test accuracy {outcome['test_accuracy']:.4f}, loss {outcome['test_loss']:.4f}, {spent}", flush=True
    )


if __name__ == "__main__":
    cli.run(main)
