"""One HTML file to look at examples by their scores: two linked scatter plots, a table and pictures.

All of it, Bokeh's JavaScript too, is in the file: the page asks no server for anything. What a reader does on the page
is in explorer_page/page.js; here the data are laid out for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bokeh
import numpy as np
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    ColumnDataSource,
    CustomJSTickFormatter,
    HoverTool,
    LassoSelectTool,
    LinearColorMapper,
    PanTool,
    Range1d,
    ResetTool,
    WheelZoomTool,
)
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from libplots.explorer_data import ScoreTable
from libstore.store import input_digests

FORMAT = 1
_FILES = Path(__file__).parent / "explorer_page"
_CLASSES = "#332288 #CC6677 #117733 #DDAA33 #88CCEE #882255 #44AA99 #999933 #AA4499 #333333"
"""Colours that are told apart whatever one's sight (Paul Tol's "muted", its yellow darkened, its grey replaced)."""
_NOTHING = "#C8C8C8"


def default_view(columns: Sequence[str]) -> dict[str, str]:
    """Return which columns are shown first: curvature and loss, or what there is, against memorization.

    Args:
        columns: The scores.
    """

    def first(*beginnings: str, but: Sequence[str] = ()) -> str:
        for beginning in beginnings:
            for name in columns:
                if name.startswith(beginning) and name not in but:
                    return name
        return next((name for name in columns if name not in but), columns[0])

    y = first("memorization_prob", "memorization")
    x = first("curvature", "hessian_trace", "trace", but=(y,))
    x2 = first("instance_epsilon", "loss", "private_loss", "epsilon_sensitivity", but=(x, y))
    return {"x1": x, "y1": y, "x2": x2, "y2": y, "colour": "label"}


def made_with() -> dict[str, Any]:
    """Return what decides, beside the data, what a page looks like: for its sidecar."""
    return {"bokeh": bokeh.__version__, "files": input_digests(sorted(_FILES.iterdir()))}


def page(
    table: ScoreTable,
    rows: np.ndarray,
    weights: np.ndarray,
    view: dict[str, str],
    shown: dict[str, Any],
    influence: dict[str, np.ndarray],
    about: dict[str, Any],
) -> bytes:
    """Return the page.

    Args:
        table: The scores.
        rows: Rows of the table that are shown, shape (N,).
        weights: How many examples of the table each stands for, shape (N,).
        view: Columns shown first: `x1`, `y1`, `x2`, `y2`, `colour` ("label" for the class).
        shown: `train` and `test`: what `pictures` returns of the examples and of the test examples of `influence`.
        influence: What `pairs_of` returns, with `test_label` and `picture` (place among the test ones).
        about: `title`, `num_classes`, `class_names` (by label, or empty), and what else is said of the page.
    """
    frame = table.frame.iloc[rows]
    columns = {name: frame[name].to_numpy(np.float32) for name in frame.columns if name not in ("example", "label")}
    whole = {name: frame[name].to_numpy(np.int32) for name in ("example", "label")}
    scores = ColumnDataSource({"weight": weights.astype(np.float32), **whole, **columns}, name="scores")
    points = ColumnDataSource({name: [] for name in ("x1", "y1", "x2", "y2", "colour")}, name="points")
    pairs = ColumnDataSource(influence, name="influence")
    mapper = LinearColorMapper(palette=Cividis256, low=0, high=1, nan_color=_NOTHING, name="colours")

    document = Document()
    for number in (1, 2):
        document.add_root(_plot(number, points, mapper, len(rows)))
    document.add_root(scores)
    document.add_root(pairs)
    settings = about | {
        "columns": [_about_column(table, name) for name in table.scores],
        "missing": table.about["missing"],
        "total": len(table.frame),
        "chance": float(table.pairs["chance"]) if table.pairs else None,
        "view": view,
        "classColours": _CLASSES.split(),
        "colours": Cividis256,
        "pictures": shown,
    }
    content = (_FILES / "page.html").read_text(encoding="utf-8")
    resources = Resources(mode="inline", components=["bokeh", "bokeh-gl"], log_level="warn")
    for name, text in (
        ("title", _escaped(about["title"])),
        ("style", (_FILES / "page.css").read_text(encoding="utf-8")),
        ("settings", _script_json(settings)),
        ("document", _script_json(document.to_json(deferred=False))),
        ("script", (_FILES / "page.js").read_text(encoding="utf-8")),
        ("bokeh", resources.render_js()),
    ):
        before, after = content.split(f"<!-- {name} -->", 1)
        content = before + text + after
    return content.encode()


def _plot(number: int, points: ColumnDataSource, mapper: Any, count: int) -> figure:
    """Return one of the two scatter plots, empty."""
    size = 3 if count > 20_000 else 5 if count > 2_000 else 8
    plot = figure(
        name=f"plot{number}", x_range=Range1d(start=0, end=1), y_range=Range1d(start=0, end=1), tools="",
        output_backend="webgl", toolbar_location="above", background_fill_color="#FFFFFF", border_fill_color=None,
        outline_line_color="#B8BEC6", min_border=8, lod_threshold=None,
        sizing_mode="stretch_both",
    )  # fmt: skip
    dots = plot.scatter(
        f"x{number}", f"y{number}", source=points, size=size, line_color=None, fill_alpha=0.65,
        fill_color={"field": "colour", "transform": mapper}, nonselection_fill_alpha=0.08,
        selection_fill_alpha=0.9, name=f"points{number}",
    )  # fmt: skip
    box, wheel = BoxSelectTool(renderers=[dots]), WheelZoomTool()
    tools = (box, LassoSelectTool(renderers=[dots], continuous=False), PanTool(), wheel, ResetTool())
    plot.add_tools(*tools, HoverTool(renderers=[dots], tooltips=None, name=f"hover{number}"))
    plot.toolbar.active_drag, plot.toolbar.active_scroll, plot.toolbar.logo = box, wheel, None
    plot.grid.grid_line_color = "#E9ECEF"
    for axis, name in ((plot.xaxis[0], "x"), (plot.yaxis[0], "y")):
        axis.name = f"{name}{number}"
        axis.ticker = BasicTicker(desired_num_ticks=6)
        axis.formatter = CustomJSTickFormatter(args={"scale": "linear"}, code="return explorer.tick(tick, scale)")
        axis.update(
            axis_label_text_font_size="13px", axis_label_text_font_style="normal", axis_label_text_color="#1F2933",
            major_label_text_font_size="12px", major_label_text_color="#3E4C59", minor_tick_line_color=None,
            axis_line_color="#B8BEC6", major_tick_line_color="#B8BEC6",
        )  # fmt: skip
    return plot


def _about_column(table: ScoreTable, name: str) -> dict[str, Any]:
    about = table.about["columns"][name]
    kept = {key: about.get(key) for key in ("definition", "paper", "direction", "unit", "kind", "reliability")}
    return {"name": name, "se": about.get("standard_error"), **kept}


def _script_json(value: Any) -> str:
    """Return JSON that cannot end the script element it is in."""
    return serialize_json(value, pretty=False).replace("<", "\\u003c")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
