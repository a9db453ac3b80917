"""The pages as a web site: built whole, without a warning, the README first and every library's functions in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from released_files import ROOT


def test_the_site_builds(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        f"{tmp_path}/trees",
        "docs",
        str(tmp_path),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first = (tmp_path / "index.html").read_text()
    assert 'src="_images/score_atlas_mnist_smallcnn.png"' in first and 'href="results.html"' in first
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in first, f"docs/index.md does not lead to {page}"
    assert 'id="libscores.curvature.curvature"' in (tmp_path / "api/libscores.html").read_text()
