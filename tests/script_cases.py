"""Every script that writes, with tiny inputs, for the tests that kill and disturb it."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kill_server import KillServer
from PIL import Image
from released_files import (
    SYNSETS,
    cifar_sums,
    encoded,
    fake_cifar,
    photo,
    write_config,
    write_imagenet_index,
    write_tree,
)
from torchvision import datasets as tv

from build_fz_imagenet import build_imagenet
from libdata.datasets import IDX_SHA256
from libdata.imagenet import read_imagenet_index, stream
from libdata.indexed_tfrecords import encode_example, frame
from libmodels.checkpoints import ModelSpec, model_bytes
from libstore import safe_pickle
from libstore.store import arrays_bytes

KIND = ("--dataset", "cifar10", "--arch", "smallcnn")
DP = (*KIND, "--data_subset", "40", "--batch_size", "20", "--epochs", "1", "--accountant", "rdp", "--save_every", "0")
POINTS = (*DP, "--epochs", "2", "--max_grad_norm", "99", "--points", "4", "--stages", "2", "--save_freq", "2")
RESULTS = ("{work}/sensitivity_dir/res/res1.csv", "{work}/sensitivity_dir/res/res2.csv")


def cifar(inputs: Path) -> None:
    fake_cifar(inputs / "data", tv.CIFAR10, "labels", 10)


@dataclass(frozen=True)
class Case:
    """One script: its arguments, the case whose result it starts from, and how its inputs are made.

    Attributes:
        argv: Its arguments; {work} is the folder of the try and {inputs} what `make` filled.
        after: Name of the case, or a key of `FAMILIES`, whose tree is there at the start; none by default.
        make: Fills the folder of the inputs, once.
        prepare: Statements that a fork runs before the script; {inputs} as above.
        every: 1 kills at all moments, 3 at every third, ...
        randomly: Kills at random times.
    """

    script: str
    argv: tuple[str, ...]
    after: str | None = None
    make: Callable[[Path], object] = cifar
    prepare: str = ""
    every: int = 1
    randomly: int = 4


def tfds(inputs: Path) -> None:
    cifar(inputs)
    (inputs / "tfds").mkdir()
    for split in ("train", "test"):
        names = [name for name, _ in (tv.CIFAR10.train_list if split == "train" else tv.CIFAR10.test_list)]
        batches = [unpickled(inputs / "data" / tv.CIFAR10.base_folder / name) for name in names]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([batch["labels"] for batch in batches])
        order = np.random.default_rng(0).permutation(len(labels))
        records = [{"image": encoded(image_of(pixels[i]), "PNG"), "label": int(labels[i])} for i in order]
        path = inputs / "tfds" / f"cifar10-{split}.tfrecord-00000-of-00001"
        path.write_bytes(b"".join(frame(encode_example(record)) for record in records))


def unpickled(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return safe_pickle.read(file, path)  # type: ignore[return-value]


def image_of(pixels: np.ndarray) -> Any:
    return Image.fromarray(pixels)


def imagenet(inputs: Path) -> None:
    train = [f"{SYNSETS[number % 3]}_{number}.JPEG" for number in range(5)]
    validation = [f"{synset}_9.JPEG" for synset in SYNSETS]
    content = encoded(photo(60, 70, 0))
    write_tree(inputs / "ilsvrc" / "train", dict.fromkeys(train, content))
    write_tree(inputs / "ilsvrc" / "val", dict.fromkeys(validation, content))
    write_imagenet_index(inputs / "imagenet_index.npz", {"tr": train, "tt": validation})


def resnet50(inputs: Path) -> None:
    """Two photographs in two TFRecord files, and an untrained ResNet-50 with what it makes of them."""
    names = [f"{SYNSETS[0]}_0.JPEG", f"{SYNSETS[1]}_1.JPEG"]
    write_tree(inputs / "ilsvrc" / "train", {name: encoded(photo(60, 70, seed)) for seed, name in enumerate(names)})
    write_imagenet_index(inputs / "imagenet_index.npz", {"tr": names})
    config = write_config(inputs, imagenet_dir="ilsvrc", imagenet_index="imagenet_index.npz", tfrecord_dir="tfrecords")
    build_imagenet.main(["--config", str(config), "--splits", "train", "--train_shards", "2", "--workers", "1"])
    torch.manual_seed(0)
    spec = ModelSpec("resnet50", 1000, 3, "imagenet", "standard", {"resnet_version": "v2"})
    model = spec.build().eval()
    run = inputs / "fz" / "imagenet_resnet50" / "0.7" / "0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "model.pt").write_bytes(model_bytes(model, spec))
    order = read_imagenet_index(inputs / "imagenet_index.npz")
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        paths = sorted((inputs / "tfrecords").glob("train-0*"))
        batches = [batch for path in paths for batch in stream(path, order.labels, batch_size=1, pool=pool)]
        correct = np.array([bool(model(b.images).argmax(1) == b.labels) for b in batches])
    index = {"index_train": np.array([0]), "index_removed": np.array([1]), "index_test": np.array([0])}
    values = {"correctness_train": correct[:1], "correctness_removed": correct[1:], "correctness_test": correct[:1]}
    (run / "aux_arrays.npz").write_bytes(arrays_bytes(**index, **values, subsample_idx=np.array([0])))


def fashion(inputs: Path) -> None:
    (inputs / "debian").mkdir()
    for name in IDX_SHA256["FashionMNIST"]:
        (inputs / "debian" / f"{name}.gz").write_bytes(gzip.compress(name.encode() * 99))


def archive(inputs: Path) -> None:
    cifar(inputs)
    folder = inputs / "data" / tv.CIFAR10.base_folder
    (folder / tv.CIFAR10.meta["filename"]).write_bytes(b"names of the classes")
    with tarfile.open(inputs / tv.CIFAR10.filename, "w:gz") as tar:
        tar.add(folder, tv.CIFAR10.base_folder)


FASHION = """
import gzip, hashlib
from pathlib import Path
from libdata import download
download.DEBIAN_FASHION_MNIST = Path({inputs!r}, "debian")
for path in download.DEBIAN_FASHION_MNIST.iterdir():
    content = gzip.decompress(path.read_bytes())
    download.IDX_SHA256["FashionMNIST"][path.stem] = hashlib.sha256(content).hexdigest()
"""
ARCHIVE = """
import hashlib
from pathlib import Path
from libdata.datasets import CIFAR_MD5
from torchvision.datasets import CIFAR10
md5 = lambda path: hashlib.md5(Path({inputs!r}, path).read_bytes()).hexdigest()
sums = CIFAR_MD5[CIFAR10.base_folder]
sums.update((name, md5("data/" + CIFAR10.base_folder + "/" + name)) for name in sums)
CIFAR10.url, CIFAR10.tgz_md5 = {url!r} + CIFAR10.filename, md5(CIFAR10.filename)
"""

TRAIN = (*KIND, "--data_subset", "40", "--epochs", "2", "--stop_run", "2", "--save_every", "0")
OVERWRITE = (*KIND, "--n_probes", "2", "--overwrite", "--stop_run", "1")
COSTS = "{work}/sensitivity_dir/compo_res/compo_res_all"
CASES = {
    "train": Case("train_fz_models.py", TRAIN, every=2),
    "curvature": Case("calc_curv_fz_models.py", (*KIND, "--n_probes", "1"), "train", every=3),
    "curvature again": Case("calc_curv_fz_models.py", OVERWRITE, "curvature", every=2),
    "table": Case("score_table.py", KIND, "curvature", every=6, randomly=1),
    "subsets": Case(
        "scripts/make_memorization_subsets.py", (*KIND, "--top_k", "4", "--seeds", "0", "1"), "train"
    ),
    "private": Case("train_dp.py", (*DP, "--epsilon", "5", "--epochs", "2"), every=2),
    "private curvature": Case(
        "calc_curv_private_models.py", (*KIND, "--n_probes", "1", "--seed", "0"), "family", every=6
    ),
    "loss": Case("loss_v_priv.py", (*KIND, "--suffix", "*"), "family", every=5, randomly=2),
    "memorization": Case(
        "calc_private_memorization.py", (*KIND, "--suffix", "*"), "family", every=5, randomly=2
    ),
    "norms": Case("sensitivity/compute_sensitivity.py", POINTS, every=3),
    "mean rule": Case(
        "sensitivity/mean_rule.py", (*POINTS, "--alpha", "2", "--batches", "4", "--tuples", "1"), "norms"
    ),
    "accounting": Case("renyi_per_instance_sum_compo.py", RESULTS, "runs"),
    "single steps": Case("sensitivity/eps_delta.py", RESULTS, "runs"),
    "joined": Case("sensitivity/res/res_concat.py", RESULTS, "runs"),
    "split": Case("sensitivity/res/res_splitter.py", RESULTS, "runs", every=2),
    "ranking": Case("sensitivity/compo_res/rank.py", (f"{COSTS}_totals.csv", "--select", "1"), "accounting"),
    "comparison": Case(
        "sensitivity/rank_eval.py",
        (f"{COSTS}_ranked.csv", f"{COSTS}_ranked.csv", "--output", "{work}/table.csv"), "ranking",
    ),
    "records": Case(
        "build_fz_imagenet/build_imagenet.py",
        ("--train_shards", "3", "--validation_shards", "2", "--workers", "2"), make=imagenet,
    ),
    "ImageNet": Case(
        "calc_curv_fz_imagenet_models.py",
        ("--stop_idx", "0", "--n_probes", "1", "--workers", "1"), make=resnet50, every=14, randomly=1,
    ),
    "download": Case("libdata.download", ("fashionmnist",), make=fashion, prepare=FASHION),
    "unpacking": Case("libdata.download", ("cifar10",), make=archive, prepare=ARCHIVE),
    "order": Case("libdata.tfds_order", ("cifar10", "{inputs}/tfds"), "ensemble folder", tfds),
}  # fmt: skip
# Trees that several runs make: lines of a script each.
FAMILIES = {
    "family": [
        ("train_fz_models.py", *CASES["train"].argv),
        ("scripts/make_memorization_subsets.py", *KIND, "--top_k", "4", "--seeds", "0", "1", "2", "3"),
        *(
            ("train_dp.py", *DP, "--batch_size", "10", "--epsilon", epsilon, "--seed", str(seed),
             "--train_subset", f"{{work}}/private_model_dir/subsets/cifar10/subset_{seed}.npy")
            for epsilon in ("2", "50") for seed in range(4)
        ),
    ],
    "runs": [("sensitivity/compute_sensitivity.py", *POINTS, "--run", run) for run in ("1", "2")],
}  # fmt: skip


class Trees:
    """Folders that scripts start from and should end with, each made once."""

    def __init__(self, folder: Path, server: KillServer, url: str) -> None:
        self.folder, self.server, self.url = folder, server, url
        self._whole: dict[str, Path] = {}

    def inputs(self, case: Case) -> Path:
        """Return the folder of a case's inputs."""
        made = (
            self.folder
            / "inputs"
            / "".join(filter(str.isalnum, f"{case.make.__name__}{case.make.__code__.co_firstlineno}"))
        )
        if not made.exists():
            made.mkdir(parents=True)
            case.make(made)
        return made

    def begin(self, name: str, at: Path) -> None:
        """Fill a folder with what a case starts from."""
        case = CASES[name]
        if case.after == "ensemble folder":
            (at / "fz_model_dir" / "cifar10_small_inception").mkdir(parents=True)
        elif case.after:
            shutil.copytree(self.whole(case.after), at, dirs_exist_ok=True)
        at.mkdir(exist_ok=True)
        inputs = self.inputs(case)
        paths = {"imagenet_dir": inputs / "ilsvrc", "imagenet_index": inputs / "imagenet_index.npz"}
        paths["data_dir"] = at / "data" if case.script == "libdata.download" else inputs / "data"
        if name == "ImageNet":
            paths |= {"tfrecord_dir": inputs / "tfrecords", "fz_model_dir": inputs / "fz"}
        write_config(at, **paths)

    def line(self, name: str, work: Path) -> tuple[str, list[str]]:
        """Return a case's script and arguments in a folder."""
        case = CASES[name]
        argv = [word.format(work=work, inputs=self.inputs(case)) for word in case.argv]
        return case.script, [*argv, "--config", str(work / "config.json")]

    def prepare(self, name: str) -> str:
        """Return what a fork does before the script of a case."""
        case = CASES[name]
        inputs = self.inputs(case)
        return case.prepare.format(inputs=str(inputs), url=f"{self.url}{inputs.relative_to(self.folder)}/")

    def whole(self, name: str) -> Path:
        """Return the tree that undisturbed runs leave."""
        if name not in self._whole:
            work = self.folder / "whole" / name.replace(" ", "_")
            work.parent.mkdir(exist_ok=True)
            if name in CASES:
                self.begin(name, work)
                lines, prepare = [self.line(name, work)], self.prepare(name)
            else:
                work.mkdir()
                config = write_config(work, data_dir=self.inputs(CASES["train"]) / "data")
                words = [[word.format(work=work) for word in line] for line in FAMILIES[name]]
                lines, prepare = [(first, [*rest, "--config", str(config)]) for first, *rest in words], ""
            for script, argv in lines:
                ended = self.server.run(script, argv, prepare=prepare)
                assert ended.status == 0, (argv, ended.errors)
            self._whole[name] = work
        return self._whole[name]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def script_trees(folder: Path) -> Iterator[Trees]:
    """Serve the cases from a folder."""
    handler = partial(QuietHandler, directory=str(folder))
    cifar(folder)
    sums = cifar_sums(folder / "data")[tv.CIFAR10.base_folder]
    known = f"from libdata.datasets import CIFAR_MD5\nCIFAR_MD5[{tv.CIFAR10.base_folder!r}].update({sums})\n"
    with KillServer(folder, known) as server, ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield Trees(folder, server, f"http://127.0.0.1:{web.server_port}/")
        web.shutdown()


def snapshot(folder: Path) -> dict[str, Any]:
    """Return every file and folder; JSON without provenance, also where it is half a sidecar's temporary file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif name != "config.json":
            content: Any = path.read_bytes()
            if ".json" in path.name and content:
                content = json.loads(content)
                if isinstance(content, dict):
                    content.pop("provenance", None)
            found[name] = content
    return found


def files(found: dict[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in found.items() if content is not None}
