"""The page of examples: opened, pointed at, selected and searched in a real browser; what it shows against the data."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import DATA, assert_refused, run_script
from PIL import Image
from released_files import write_config
from scipy import stats
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from libdata.datasets import load_dataset
from libdata.own_data import read_own
from libplots.explorer_data import choose_examples, pairs_of, pictures
from libstore.gathered_scores import PAIRS
from libstore.score_columns import of_score
from libstore.score_table import Column, Gathered, TableFiles, join
from libstore.store import arrays_bytes

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1600,1300",
)  # fmt: skip

INFLUENCE = "influence_mnist_smallcnn.npz"


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read MNIST as the format's description has it."""
    raw, prefix = DATA / "MNIST" / "raw", {"train": "train", "test": "t10k"}[split]
    pixels = np.frombuffer((raw / f"{prefix}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    return pixels.reshape(-1, 28, 28), np.frombuffer((raw / f"{prefix}-labels-idx1-ubyte").read_bytes()[8:], np.uint8)


@dataclass
class Study:
    """A score table on disk, and its page."""

    folder: Path
    table: pd.DataFrame
    pairs: dict[str, np.ndarray] | None
    dataset: str = "mnist"
    flags: tuple[str, ...] = ()

    @property
    def page(self) -> Path:
        return self.folder / "figure_dir" / f"explore_{Path(self.dataset).stem}_smallcnn.html"

    def explore(self, *flags: object):
        config = ("--config", self.folder / "config.json")
        return run_script("explore.py", "--dataset", self.dataset, *config, *self.flags, *flags)

    def settings(self) -> dict:
        found = re.search(r'<script type="application/json" id="settings">(.*?)</script>', self.page.read_text())
        assert found
        return json.loads(found[1])


def make_study(
    folder: Path, frame: pd.DataFrame, labels: np.ndarray, sha256: str, pairs: dict[str, np.ndarray] | None = None,
    dataset: str = "mnist", flags: tuple[str, ...] = (),
) -> Study:  # fmt: skip
    """Write a score table as score_table.py does."""
    write_config(folder)
    scores = [name for name in frame.columns if name != "example" and not name.endswith("_se")]
    columns = [
        Column(
            name, of_score(name)[1], frame["example"].to_numpy(), frame[name].to_numpy(float),
            frame[f"{name}_se"].to_numpy(float) if f"{name}_se" in frame else None,
            sha256, "smallcnn", range(6), 0.8, "",
        )
        for name in scores
    ]  # fmt: skip
    missing = {"grand": "python calc_curv_fz_models.py --scores grand"}
    found = Gathered(columns=columns, missing=missing, beside={PAIRS: arrays_bytes(**pairs)} if pairs else {})
    name = Path(dataset).stem
    files = TableFiles(folder / "score_dir", name, "smallcnn", {"files": {}})
    files.save(join(columns, labels), found, sha256)
    return Study(folder, pd.read_parquet(files.output.path), pairs, dataset, flags)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """400 digits from all over MNIST with scores of every kind, and the page made of them."""
    rng, n = np.random.default_rng(5), 400
    frame = pd.DataFrame({"example": np.arange(n) * 149 + 3})
    frame["memorization_prob"] = rng.uniform(-0.2, 1, n)
    frame["memorization_prob_se"] = rng.uniform(0.01, 0.1, n)
    frame["curvature"] = np.exp(rng.normal(-5, 3, n))
    frame["loss"] = np.round(rng.exponential(1, n), 1)  # with ties, and zeros, which no logarithmic axis has
    frame["margin"] = rng.normal(0, 5, n)
    frame.loc[[7, 70], "margin"] = np.nan
    frame.loc[51, ["curvature", "memorization_prob"]] = (
        frame["curvature"][50] * 10**0.07,
        frame["memorization_prob"][50],
    )
    influence = -np.sort(-rng.normal(0, 0.2, (200, 3)))
    influence[5] = np.nan
    pairs = {
        "example": frame["example"].to_numpy()[::2], "test": rng.integers(0, 300, (200, 3)), "influence": influence,
        "standard_error": np.full((200, 3), 0.0625), "chance": np.array(0.125),
    }  # fmt: skip
    sha256 = load_dataset("mnist", "train", DATA, index=np.arange(1)).content_sha256
    made = make_study(tmp_path_factory.mktemp("digits"), frame, digits("train")[1], sha256, pairs)
    result = made.explore()
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert result.stdout == f"{made.page}: 400 of 400 examples\n"
    return made


class Browser:
    """A page in Chromium, read and used as a person would."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open(self, page: Path) -> Browser:
        self.driver.get(page.as_uri())
        self.until(lambda: self.js("return document.body.dataset.ready"), "the page is ready")
        return self

    def js(self, code: str, *args: object):
        return self.driver.execute_script(code, *args)

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"never: {what}"
            time.sleep(0.02)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def choose(self, name: str, text: str) -> None:
        Select(self[name]).select_by_value(text)

    def drawn(self, column: str) -> np.ndarray:
        code = "return Array.from(Bokeh.documents[0].get_model_by_name('points').data[arguments[0]], String)"
        return np.array(self.js(code, column), float)

    def at(self, plot: int, x: float, y: float) -> tuple[int, int]:
        """Return where in the window a place of a plot is."""
        return tuple(self.js(
            "const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name('plot' + arguments[0]));"
            "const box = view.canvas_view.el.getBoundingClientRect();"
            "return [Math.round(box.left + view.frame.x_scale.compute(arguments[1])),"
            "        Math.round(box.top + view.frame.y_scale.compute(arguments[2]))]", plot, x, y,
        ))  # fmt: skip

    def drag(self, start: tuple[int, int], end: tuple[int, int] | None = None) -> None:
        """Move to a place, and from there with the button held to another."""
        action = ActionBuilder(self.driver, duration=30)
        action.pointer_action.move_to_location(*start)
        if end:
            action.pointer_action.pointer_down().move_to_location(*end).pointer_up()
        action.perform()

    def selected(self) -> list[int]:
        return self.js("return Bokeh.documents[0].get_model_by_name('points').selected.indices")

    def pixels(self, canvas: WebElement) -> np.ndarray:
        """Return what a canvas shows, shape (H, W, 3)."""
        self.until(lambda: canvas.get_attribute("data-drawn"), "the picture is drawn")
        code = (
            "const c = arguments[0];"
            "return [c.height, c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"
        )
        height, width, values = self.js(code, canvas)
        return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    def rows(self) -> list[list[str]]:
        code = "return Array.from(document.getElementById('table').tBodies[0].rows, "
        return self.js(code + "row => Array.from(row.cells, cell => cell.innerText))")

    def find(self, number: int) -> None:
        self["search"].clear()
        self["search"].send_keys(str(number), Keys.ENTER)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window and without a network."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        missing = "chromium or chromedriver is not installed"
        if os.environ.get("CI_REQUIRE_SYSTEM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(programs[1])))
    try:
        yield Browser(driver, downloads)
        severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe
    finally:
        driver.quit()


@pytest.fixture
def page(study: Study, chromium: Browser) -> Browser:
    return chromium.open(study.page)


def test_the_page_asks_nobody_for_anything(page: Browser, study: Study) -> None:
    assert page.js("return performance.getEntriesByType('resource').map(one => one.name)"
                   ".filter(name => !/^(data|blob):/.test(name))") == []  # fmt: skip
    assert "default-src 'none'" in page.js("return document.querySelector('meta[http-equiv]').content")
    assert page["about"].text == "all 400 examples of the table"
    told = page["definitions"].get_attribute("textContent")
    assert of_score("curvature")[1].definition in told and "python calc_curv_fz_models.py --scores grand" in told


def test_axes_show_any_column_linear_logarithmic_or_by_rank(page: Browser, study: Study) -> None:
    table = study.table
    assert [page[name].get_attribute("value") for name in ("x1", "y1", "x2", "y2")] == [
        "curvature", "memorization_prob", "loss", "memorization_prob",
    ]  # fmt: skip
    np.testing.assert_allclose(page.drawn("x1"), np.log10(table["curvature"]), rtol=1e-5)
    np.testing.assert_allclose(page.drawn("y1"), table["memorization_prob"], rtol=1e-6)
    page.choose("x1", "loss")
    page.choose("x1-scale", "rank")
    np.testing.assert_allclose(page.drawn("x1"), (stats.rankdata(table["loss"]) - 0.5) / 4, rtol=1e-6)
    label = "return Bokeh.documents[0].get_model_by_name('x1').axis_label"
    assert page.js(label) == "loss  (% of examples below)   → more exposed"
    page.choose("x1-scale", "log")
    zero = (table["loss"] == 0).to_numpy()
    assert zero.any() and np.array_equal(np.isnan(page.drawn("x1")), zero)
    assert page["hidden1"].text == f"Not drawn, without a value here: {zero.sum()}."
    assert page.js(label) == "loss  (nats, logarithmic)   → more exposed" and page["hidden2"].text == ""
    page.choose("y2", "memorization_prob_se")
    np.testing.assert_allclose(page.drawn("y2"), table["memorization_prob_se"], rtol=1e-6)

    assert page["legend"].text.split() == list("0123456789")
    page.choose("colour", "margin")
    ranks = (stats.rankdata(table["margin"], nan_policy="omit") - 0.5) / table["margin"].count() * 100
    np.testing.assert_allclose(page.drawn("colour"), ranks, rtol=1e-6)
    assert page["legend"].text.split() == ["0", "%", "100", "%"]


def lonely(frame: pd.DataFrame, x: str, y: str) -> int:
    """Return the row that is farthest from all others on the plot, away from its borders."""
    places = frame[[x, y]].to_numpy()
    places = (places - places.min(0)) / np.ptp(places, 0)
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(len(places))
    inside = ((places > 0.1) & (places < 0.9)).all(1)
    return int((apart.min(1) * inside).argmax())


def test_the_example_under_the_cursor_is_shown_with_its_scores_and_influence(page: Browser, study: Study) -> None:
    table = study.table.assign(log=np.log10(study.table["curvature"]))
    row = lonely(table, "log", "memorization_prob")
    one = study.table.loc[row]
    page.find(int(table["example"][399]))
    pinned = page["example-title"].text
    page.drag(page.at(1, table["log"][row], one["memorization_prob"]))
    title = f"Example {one['example']} · class {one['label']}"
    page.until(lambda: page["example-title"].text == title, title)
    train, _ = digits("train")
    test, classes = digits("test")
    shown = page["example-picture"].find_element(By.TAG_NAME, "canvas")
    assert (page.pixels(shown) == train[int(one["example"])][..., None]).all()
    assert shown.accessible_name == f"example {one['example']}, class {one['label']}"
    lines = [line.split() for line in page["example-scores"].text.splitlines()[1:]]
    assert [line[0] for line in lines] == ["memorization_prob", "curvature", "loss", "margin"]
    for name, value, *rest in lines:
        assert float(value.replace("−", "-")) == pytest.approx(one[name], rel=1e-2)
        assert (rest == []) == (name != "memorization_prob")
    assert float(lines[0][3]) == pytest.approx(one["memorization_prob_se"], rel=0.05)
    for plot, across in ((1, table["log"][row]), (2, one["loss"])):
        box = page[f"ring{plot}"].rect
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert middle == pytest.approx(page.at(plot, across, one["memorization_prob"]), abs=1.5)

    for row in (50, 51):  # one half covers the other
        page.drag(page.at(1, table["log"][row], table["memorization_prob"][row]))
        title = f"Example {table['example'][row]} · class {table['label'][row]}"
        page.until(lambda title=title: page["example-title"].text == title, title)

    page.drag(page.at(1, table["log"].min(), 1.03))  # an empty corner: back to what was searched for
    page.until(lambda: page["example-title"].text == pinned, pinned)
    for row, known in ((399, False), (10, False), (22, True)):  # without an entry, with an empty one, with three
        page.find(int(table["example"][row]))
        assert ("No influence is known" in page["example-influence"].text) != known
    found = page["example-influence"].find_elements(By.TAG_NAME, "li")
    wanted = [study.pairs[key][11] for key in ("test", "influence")]
    for line, number, influence in zip(found, *wanted, strict=True):
        name, value = line.text.removesuffix(" ± 0.063").split(": ")
        assert name == f"test {number}, class {classes[number]}"
        assert float(value.replace("−", "-")) == pytest.approx(influence, rel=1e-3)
        assert (page.pixels(line.find_element(By.TAG_NAME, "canvas")) == test[number][..., None]).all()
    assert "up to 0.125 in 95 of 100 examples" in page["example-influence"].text


def test_a_box_selects_in_both_plots_and_the_table_and_goes_to_a_csv(page: Browser, study: Study) -> None:
    table = study.table
    y, x = table["memorization_prob"], table["loss"]
    start, end = page.at(2, 0.55, 0.25), page.at(2, 1.75, 0.85)
    page.drag(start, end)
    inside = table[(x > 0.55) & (x < 1.75) & (y > 0.25) & (y < 0.85)]
    near = ((y - 0.25).abs() < 0.01) | ((y - 0.85).abs() < 0.01)  # a pixel more or less
    page.until(page.selected, "something is selected")
    chosen = page.selected()
    assert set(inside.index) ^ set(chosen) <= set(table.index[near]) and len(chosen) > 20
    selected = table.loc[chosen]
    assert page["table-title"].text == f"{len(chosen)} of 400 examples selected"

    for clicks, falling in ((1, True), (2, False)):
        page["table"].find_element(By.CSS_SELECTOR, "th[data-column=curvature] button").click()
        wanted = selected.sort_values("curvature", ascending=not falling)["example"]
        assert [int(row[1]) for row in page.rows()] == wanted[:25].tolist(), clicks
        head = page["table"].find_element(By.CSS_SELECTOR, "th[data-column=curvature]")
        assert head.get_attribute("aria-sort") == ("descending" if falling else "ascending")
    page["next"].click()
    assert [int(row[1]) for row in page.rows()] == wanted[25:50].tolist()
    first = page["table"].find_element(By.CSS_SELECTOR, "tbody canvas")
    assert (page.pixels(first) == digits("train")[0][wanted.iloc[25]][..., None]).all()

    page["csv"].click()
    file = page.downloads / "mnist_smallcnn_selection.csv"
    page.until(file.exists, "the CSV is there")
    assert pd.read_csv(file)["example"].tolist() == sorted(selected["example"])
    page["clear"].click()
    assert page.selected() == [] and not page["csv"].is_enabled()
    assert page["table-title"].text == "Nothing selected; 400 of 400 examples listed"


def test_search_class_and_selection_by_keyboard_alone(page: Browser, study: Study) -> None:
    table = study.table
    page.find(int(table["example"][123]))
    assert page["example-title"].text == f"Example {table['example'][123]} · class {table['label'][123]}"
    page.find(5)
    assert page["message"].text == f"There is no example 5: {table['example'].min()} … {table['example'].max()}."
    page.choose("class", "7")
    sevens = table[table["label"] == 7]
    assert np.array_equal(np.isfinite(page.drawn("x1")), table["label"] == 7)
    assert page["table-title"].text == f"Nothing selected; {len(sevens)} of 400 examples listed"
    page["count"].clear()
    page["count"].send_keys("6", Keys.TAB, "margin", Keys.TAB, Keys.ENTER)
    assert sorted(page.selected()) == sorted(sevens["margin"].nlargest(6).index)

    found = page.driver.find_elements(By.CSS_SELECTOR, "body > :not(#definitions) :is(select, input, button)")
    controls = [control for control in found if control.is_displayed()]
    for control in controls:
        assert control.accessible_name, control.get_attribute("outerHTML")
    reached, body = set(), page.driver.find_element(By.TAG_NAME, "body")
    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")
    body.click()
    enabled = {control.id for control in controls if control.is_enabled()}
    for _ in range(len(controls) + 30):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.add(page.driver.switch_to.active_element.id)
    assert enabled <= reached


def test_more_examples_than_fit_are_sampled_and_the_extremes_stay(chromium: Browser, study: Study) -> None:
    result = study.explore("--points", 100, "--x", "margin", "--y", "loss", "--colour", "curvature")
    assert result.returncode == 0 and "made again" in result.stdout
    try:
        page, table = chromium.open(study.page), study.table
        assert page["about"].text.startswith("100 of 400 examples: those with the highest and lowest values")
        assert [page[name].get_attribute("value") for name in ("x1", "y1", "y2", "colour")] == [
            "margin", "loss", "loss", "curvature",
        ]  # fmt: skip
        scores = "const d = Bokeh.documents[0].get_model_by_name('scores').data;"
        examples = page.js(f"{scores} return Array.from(d.example)")
        assert len(set(examples)) == 100 and set(examples) <= set(table["example"])
        for name in ("memorization_prob", "curvature", "loss", "margin"):
            assert {table["example"][table[name].idxmax()], table["example"][table[name].idxmin()]} <= set(examples)
        shown = table[table["example"].isin(examples)]
        page.choose("y1", "label")
        assert page.drawn("y1").tolist() == table["label"][table["example"].isin(examples)].tolist()
        page.choose("y1", "memorization_prob")
        page.choose("y1-scale", "rank")
        ranks = (stats.rankdata(table["memorization_prob"]) - 0.5)[shown.index] / 4
        assert np.abs(page.drawn("y1") - ranks).max() < 12  # estimates, from 100 of 400
        lost = int(table["example"][~table["example"].isin(examples)].iloc[0])
        page.find(lost)
        assert page["message"].text == f"Example {lost} is not among those on this page."
    finally:
        assert study.explore().returncode == 0


def test_what_stays_of_a_large_table_stands_for_all_of_it() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_cauchy((5000, 3))
    scores[rng.random((5000, 3)) < 0.1] = np.nan
    rows, weights = choose_examples(scores, 800)
    assert len(rows) == 800 and np.array_equal(rows, np.unique(rows)) and weights.sum() == pytest.approx(5000)
    for column in scores.T:
        order = np.argsort(column)[: np.isfinite(column).sum()]
        extremes = np.isin(rows, np.r_[order[:34], order[-34:]])
        assert extremes.sum() == 68 and (weights[extremes] == 1).all()
    assert [len(part) for part in choose_examples(scores, 5000)] == [5000, 5000]
    wide = rng.normal(size=(5000, 40))
    assert set(wide.argmax(0)) | set(wide.argmin(0)) <= set(choose_examples(wide, 100)[0])
    few = choose_examples(np.full((300, 1), np.nan), 100)  # nothing but empty cells
    assert few[1] == pytest.approx(np.full(100, 3.0))


def test_pairs_of_no_example_on_the_page_are_left_out() -> None:
    pairs = {"example": np.array([4, 9]), "test": np.array([[1, 2], [3, 4]])}
    pairs |= {"influence": np.array([[0.5, np.nan], [0.1, 0]]), "standard_error": np.ones((2, 2))}
    found = pairs_of(pairs, np.array([2, 4]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "row": [1], "test_example": [1], "influence": [0.5], "standard_error": [1],
    }  # fmt: skip
    assert all(len(values) == 0 for values in pairs_of(None, np.array([2, 4])).values())


def test_large_pictures_become_thumbnails() -> None:
    big = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) * np.ones((1, 1, 50, 200), np.float32)
    found = pictures(big)
    sheet = Image.open(io.BytesIO(base64.b64decode(found["sheets"][0].partition(",")[2])))
    assert (found["width"], found["height"], found["pitch_x"], sheet.size) == (64, 16, 64, (64 * 32, 16))
    assert np.asarray(sheet)[8, 32:256:64].tolist() == [0, 85, 170, 255]  # stretched from lowest to highest


def own_study(folder: Path, x: np.ndarray, *flags: str) -> Study:
    """Write own data of 30 and 10 examples in three classes, with a table of scores."""
    file, labels = folder / "own.npz", np.arange(40) % 3
    np.savez(file, train_x=x[:30], train_y=labels[:30], test_x=x[30:], test_y=labels[30:])
    sha256 = read_own(str(file), tokens="--tokens" in flags).sha256
    frame = pd.DataFrame({"example": np.arange(30), "loss": np.arange(30) / 7})
    return make_study(folder, frame, labels, sha256, dataset=str(file), flags=flags)


def test_texts_token_ids_rows_and_colours_are_shown(tmp_path: Path, chromium: Browser) -> None:
    rng = np.random.default_rng(3)
    kinds = {name: tmp_path / name for name in ("tokens", "rows", "colours")}
    for folder in kinds.values():
        folder.mkdir()
    tokens, rows = rng.integers(0, 900, (40, 12)), rng.normal(0, 1, (40, 5)).astype(np.float32)
    coarse = rng.integers(0, 256, (40, 3, 5, 4)).repeat(8, axis=2).repeat(8, axis=3).astype(np.uint8)

    study = own_study(kinds["tokens"], tokens, "--tokens")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("".join(f"Sentence <b>{i}</b>, ü\n" for i in range(30)))
    for flags, wanted in (((), " ".join(map(str, tokens[11]))), (("--texts", sentences), "Sentence <b>11</b>, ü")):
        assert study.explore(*flags).returncode == 0
        page = chromium.open(study.page)
        page.find(11)
        assert page["example-picture"].text == wanted and page.rows()[11][1:4] == [wanted, "11", "2"]

    study = own_study(kinds["rows"], rows)
    assert study.explore().returncode == 0
    shown = study.settings()["pictures"]["train"]["texts"]
    assert np.array([line.split() for line in shown], float) == pytest.approx(rows[:30], rel=1e-3)

    study = own_study(kinds["colours"], coarse)
    assert study.explore().returncode == 0
    page = chromium.open(study.page)
    page.find(17)
    pixels = page.pixels(page["example-picture"].find_element(By.TAG_NAME, "canvas")).astype(int)
    assert pixels.shape == (40, 32, 3)
    assert np.abs(pixels - coarse[17].transpose(1, 2, 0)).mean() < 16  # compressed, its chroma by halves


def test_classes_of_folders_are_called_by_their_names(tmp_path: Path, chromium: Browser) -> None:
    folder, labels = tmp_path / "pets", np.repeat([0, 1], 6)
    for part in ("train", "test"):
        for name in ("cat", "owl"):
            (folder / part / name).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(np.full((5, 5), 40 * i + len(part), np.uint8)).save(folder / part / name / f"{i}.png")
    frame = pd.DataFrame({"example": np.arange(12), "loss": np.arange(12) / 7})
    study = make_study(tmp_path, frame, labels, read_own(str(folder)).sha256, dataset=str(folder))
    assert study.explore().returncode == 0
    page = chromium.open(study.page)
    page.find(7)
    assert page["example-title"].text == "Example 7 · class owl" and page["legend"].text.split() == ["cat", "owl"]
    assert [option.text for option in Select(page["class"]).options] == ["all", "cat", "owl"]
    Select(page["class"]).select_by_visible_text("owl")
    assert page.rows()[0][1:3] == ["6", "owl"]


def test_the_same_line_again_does_nothing_and_other_tables_make_it_again(study: Study) -> None:
    def without_ids() -> str:
        return re.sub(r'"p\d+"', '"p"', study.page.read_text())

    before, written = without_ids(), study.page.stat().st_mtime_ns
    assert study.explore().returncode == 0 and study.page.stat().st_mtime_ns == written
    study.page.unlink()
    assert study.explore().returncode == 0 and without_ids() == before


@pytest.mark.parametrize("flag", ["--x", "--y", "--x2", "--y2", "--colour"])
def test_a_column_that_is_not_there_is_refused(study: Study, flag: str) -> None:
    known = "curvature, loss, margin, memorization_prob"
    assert_refused(study.explore(flag, "grand"), "table_mnist_smallcnn.parquet", "'grand'", known, "--scores grand")


def test_tables_of_other_data_or_none_are_refused(study: Study, tmp_path: Path) -> None:
    before = study.page.read_bytes()
    assert_refused(study.explore("--arch_name", "other"), "table_mnist_other.parquet", "table_mnist_smallcnn.parquet",
                   "python score_table.py --dataset mnist", study.folder / "config.json")  # fmt: skip
    folder = tmp_path / "changed"
    shutil.copytree(study.folder, folder)
    sidecar, pairs = (folder / "score_dir" / name for name in ("table_mnist_smallcnn.json", INFLUENCE))
    write_config(folder)
    changed = Study(folder, study.table, None)
    told = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(told | {"data_sha256": "0" * 64}))
    assert_refused(changed.explore(), "table_mnist_smallcnn.parquet", "other data", "0" * 16)
    sidecar.write_text(json.dumps(told))
    for suffix in (".json", ".parquet"):
        shutil.copy(sidecar.with_suffix(suffix), sidecar.with_name(f"table_mnist_other{suffix}"))
    assert_refused(changed.explore("--arch_name", "other"), "table_mnist_other.parquet", "mnist and smallcnn")
    pairs.write_bytes(pairs.read_bytes()[:-1])
    assert_refused(changed.explore(), INFLUENCE, "table_mnist_smallcnn.parquet", "score_table.py")
    texts = tmp_path / "texts"
    assert_refused(study.explore("--texts", texts), "--texts", texts)
    texts.write_text("one\ntwo\n")
    assert_refused(study.explore("--texts", texts), texts, "2 lines", "60000")
    assert_refused(study.explore("--points", 3), "--points", ">= 100")
    assert study.page.read_bytes() == before
