"""What the site has besides the pages of this folder: results with their figures, a gallery, the reference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PARTS = ["attacks", "crafting", "data", "victims", "methods", "metrics", "evaluation", "notebook", "diagnosis"]
PARTS += ["soundness", "probes", "runs.examiners", "runs.pretrained", "runs.export", "studies"]


def on_config(config: Any) -> Any:
    """The reference has a page for each part of the package."""
    config.nav.append({"Reference": [f"reference/{part}.md" for part in PARTS]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds results, gallery and reference."""
    pictures = sorted((ROOT / "results").rglob("*.png"))
    others = [path for kind in ("*.md", "benchmarks/*.json") for path in sorted((ROOT / "results").rglob(kind))]
    for path in [*others, *pictures]:
        files.append(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "gallery.md", content=_gallery(pictures)))
    for part in PARTS:
        text = f"# redlab.{part}\n\n::: redlab.{part}\n"
        files.append(File.generated(config, f"reference/{part}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of this folder: to results, which are here as well, or to files, which are named."""
    if page.file.src_uri.startswith("results/"):
        markdown = markdown.replace("[fails]", "(fails)").replace("[tie]", "(tie)")  # which would be references
        return re.sub(r"\[([^\]]*)\]\((?:\.\./)+(?!results)[^)]*\)", r"\1", markdown)
    markdown = markdown.replace("](../results/", "](results/")
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", markdown)


def _gallery(pictures: list[Path]) -> str:
    """Every figure of the cards, under its title and what it was measured on."""
    parts = ["# Gallery", "Figures of the cards, as the studies have drawn them."]
    for path in pictures:
        card = path.with_suffix(".json")
        said = json.loads(card.read_text()) if card.is_file() else {}
        place = path.relative_to(ROOT)
        title, data = said.get("title", path.stem), said.get("data", "")
        parts.append(f"## {title}\n\n`{said.get('study', path.stem)}`, {data}\n\n![{title}]({place})")
    return "\n\n".join(parts) + "\n"
