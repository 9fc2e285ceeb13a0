"""The site builds without a warning, and the notebook runs."""

import re
import subprocess
import sys
from urllib.parse import unquote

import nbformat
import pytest

from printed import ROOT

pytestmark = pytest.mark.slow


def test_the_site_builds_without_a_warning(tmp_path, clean_env):
    """Strict: a link that leads nowhere, or a name that is not there, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    env = clean_env | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    site = tmp_path / "site"
    gallery = (site / "gallery" / "index.html").read_text()
    shown = set(map(unquote, re.findall(r'src="\.\./(results/[^"]+\.png)"', gallery)))
    assert shown == {str(path.relative_to(ROOT)) for path in (ROOT / "results").rglob("*.png")}
    assert all((site / name).is_file() for name in shown)
    for part in ("attacks", "methods", "soundness"):
        assert f"redlab.{part}" in (site / "reference" / part / "index.html").read_text()
    assert "perturbation" in (site / "notebook" / "index.html").read_text()
    # nothing is fetched by a reader of these pages
    page = (site / "index.html").read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page)


def test_the_notebook_runs(tmp_path, clean_env, monkeypatch):
    """In a kernel of its own; what it printed when it was committed is what it prints."""
    from nbclient import NotebookClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    kept = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    notebook = nbformat.from_dict({**kept, "cells": [{**cell} for cell in kept.cells]})
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    before, after = (
        ["".join(o.get("text", "") for o in c.get("outputs", [])) for c in n.cells] for n in (kept, notebook)
    )
    assert before[1] == after[1]  # what is found of the demo's images
    assert "verdict" in after[-1]
    assert "| red |" not in after[-1]
    assert "/root/" not in str(kept)
    assert "/home/" not in str(kept)
