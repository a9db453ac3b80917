"""Link 3: memorization of the most memorized examples against epsilon, with what privacy allows.

    python calc_private_memorization.py --dataset mnist --arch smallcnn

mem(i) is the mean probability of the true label under models trained with example i minus that under models trained
without it, each mean over its own models (arXiv 2402.18726, Section 5.3). Bounds: 1 - exp(-epsilon), the paper's;
the total variation bound of (epsilon, delta)-differential privacy, which is tighter; and what decides, the total
variation of the training that was run, from its noise, sample rate and steps. Subsets of one size exchange an example
for another, which is twice that. The verdict compares the upper end of the interval with it.

Inputs: <private_model_dir>/<model>/aux_arrays.npz of models trained on the subsets of make_memorization_subsets.py,
and its top_k.npy. Outputs: <score_dir>/private_memorization/<dataset>_<arch>.npy (score and standard error by epsilon
and example, (2, E, k)) with a sidecar, and in figure_dir private_memorization_<dataset>_<arch>.png and .pdf and
results_link3_<dataset>_<arch>.json. Takes seconds.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_private_models, read_private_models

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libdata.datasets import dataset_size
from libstore.config import load_config
from libstore.errors import InputError
from libstore.index import check_index, check_index_content, index_digest, load_array
from libstore.private_models import ADDS, check_comparable, exchanges_or_adds, is_private_model, memberships
from libstore.results import ResultRow, save_figure, save_results
from libstore.store import Output, array_bytes, exclusive, provenance
from libtrain.settings import PrivacyPlan


def main(argv: Sequence[str] | None = None) -> None:
    """Estimate, save, plot."""
    parser = cli.Parser(__doc__)
    add_private_models(parser, suffix="memorization_seed_*")
    parser.add_argument(
        "--top_k", help="index of the examples (default: <private_model_dir>/subsets/<dataset>/top_k.npy)"
    )
    cli.add_overwrite(parser)
    args = parser.parse_args(argv)
    from libplots.figures import memorization_against_epsilon
    from libscores.accounting import total_variation
    from libscores.link3 import FORMAT, private_memorization, pure_bound, total_variation_bound
    from libscores.verdicts import CONTROL, within_bound

    config = load_config(args.config)
    data, subsets = f"--dataset {args.dataset}", "scripts/make_memorization_subsets.py"
    generator = f"sh scripts/create_privacy_vs_memorization_dp_train_jobs.sh {data} --arch {args.arch}"
    lines = f"the lines of {generator}, on subsets of {subsets}"
    models, dataset, arch = read_private_models(args, config, lines)
    root, score_dir = config.private_models(dataset), config.private_score_dir(dataset)
    check_comparable(models)
    top_k = Path(args.top_k or root / "subsets" / dataset / "top_k.npy")
    size = dataset_size(args.dataset, "train", config.data_dir)
    if not (args.top_k or top_k.exists()):
        raise InputError(f"{top_k}: missing; {subsets} {data} makes it, or name examples of your own with --top_k FILE")
    remedy = f"{models[0].folder} was trained on the latter: train again, or choose again, on the same data"
    check_index_content(top_k, models[0].settings["data"].get("content_sha256"), remedy)
    examples = np.sort(check_index(load_array(top_k), size, top_k))
    deltas = {model.settings["privacy"]["delta"] for model in models}
    groups = {epsilon: [m for m in models if m.epsilon == epsilon] for epsilon in sorted({m.epsilon for m in models})}
    results = {}
    for epsilon, group in groups.items():
        masks, values = memberships(group, examples)
        try:
            results[epsilon] = private_memorization(masks, values)
        except ValueError as error:
            cli.warn(f"epsilon {epsilon:g}: {error}; going on without it")
    if not results:
        raise InputError(f"{root}: no epsilon has models with and without an example; train more with {lines}")

    name, epsilons, delta = f"{dataset}_{arch}", np.array(list(results)), max(deltas)
    digests = {model.name: model.weights_sha256 for model in models if model.epsilon in results}
    settings = {"epsilons": epsilons.tolist(), "models": digests, "top_k_sha256": index_digest(examples)}
    path, inputs = score_dir / "private_memorization" / f"{name}.npy", ("models", "epsilons")
    output = Output(path, settings, FORMAT, inputs)
    scores = np.array([[getattr(r.examples, key) for r in results.values()] for key in ("score", "standard_error")])
    with exclusive(output.path.parent):
        if not output.finished(overwrite=args.overwrite, is_there=lambda model: is_private_model(root / model)):
            output.save(array_bytes(scores), provenance())

    relation, bounds = exchanges_or_adds(models, root / "subsets" / dataset), []
    for epsilon in results:
        plans = {PrivacyPlan.of_record(dict(model.provenance["privacy"])) for model in groups[epsilon]}
        largest = max(total_variation(plan.noise_multiplier, plan.sample_rate, plan.steps) for plan in plans)
        bounds.append(min(1.0, largest * (1 if relation == ADDS else 2)))
    figure = memorization_against_epsilon(name, epsilons, list(results.values()), delta, np.array(bounds))
    save_figure(figure, config.figure_dir, f"private_memorization_{name}")
    rows = []
    pures, tights = pure_bound(epsilons), total_variation_bound(epsilons, delta)
    for epsilon, result, run, tight, pure in zip(epsilons, results.values(), bounds, tights, pures, strict=True):
        mean, control = result.mean, result.shuffled
        verdict, claim = within_bound(mean, run, control), f"<= {run:.3f} ({pure:.3f} in Sec. 5.3)"
        label = f"mean memorization, epsilon {epsilon:g} ({mean.value / run:.2f} of the bound)"
        rows.append(ResultRow("Link 3", label, mean.value, mean.low, mean.high, claim, verdict))
        label = f"control: membership shuffled, epsilon {epsilon:g}"
        rows.append(ResultRow("Link 3", label, control.value, control.low, control.high, "", CONTROL))
        print(
            f"epsilon {epsilon:g}: memorization {mean} over {len(groups[epsilon])} models ({result.n_independent} "
            f"independent), membership shuffled {control}; bounds {run:.4g} (of this training, {relation}), "
            f"{tight:.4g} and {pure:.4g}; within the first: {verdict}; "
            f"{result.examples.n_undefined} of {len(examples)} examples undefined"
        )
    save_results(config.figure_dir, "link3", (dataset, arch), rows)
    print(f"{output.path} and figure {config.figure_dir / f'private_memorization_{name}.png'}")


if __name__ == "__main__":
    cli.run(main)
