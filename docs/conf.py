"""The pages of this folder and the libraries' docstrings as a web site: python -m sphinx docs results/site."""

from pathlib import Path

from sphinx.application import Sphinx

project = "privacy-links"
copyright = "the authors; MIT licence"
html_title = "Memorization, curvature and privacy of training examples"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["mnist_study/*.ipynb"]
html_theme = "alabaster"
html_theme_options = {"page_width": "auto", "body_max_width": "60em", "sidebar_width": "16em"}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_copy_source = False
myst_heading_anchors = 3
myst_ref_domains = ["std"]
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "member-order": "bysource"}
suppress_warnings = ["myst.xref_missing", "ref.python"]  # the README links files that are no pages

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "docs" / "api"
API.mkdir(exist_ok=True)
for library in sorted(path.parent for path in ROOT.glob("lib*/__init__.py")):
    lines = [library.name, "=" * len(library.name), ""]
    for module in sorted(library.glob("[a-z]*.py")):
        name = f"{library.name}.{module.stem}"
        lines += [name, "-" * len(name), "", f".. automodule:: {name}", ""]
    (API / f"{library.name}.rst").write_text("\n".join(lines))


def setup(app: Sphinx) -> None:
    """Docstrings are plain text with code in backticks: | and * mean themselves."""
    app.connect("autodoc-process-docstring", _plain)


def _plain(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line.replace("|", "\\|").replace("*", "\\*") for line in lines]
