"""The page of a diagnosis: of each image what was found, with its pictures, which lie beside the page as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from redlab.report.canvas import INK, RIGHT, WRONG, Pixels, save_figure, to_uint8
from redlab.report.html import tile_html, write_page
from redlab.report.pictures import residual
from redlab.report.tables import percent

_STYLE = """
.found { padding: 14px 18px; }
.found h3 { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; overflow-wrap: anywhere; }
.pill { border-radius: 999px; padding: 1px 10px; color: #fff; background: var(--good); font-size: 13px; }
.pill.attacked { background: var(--bad); } .pill.refused { background: var(--muted); }
.found p { color: var(--muted); font-size: 13px; }
.shots { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; }
.shots figure { max-width: 240px; }
.shots img { width: 100%; border: 1px solid var(--rule); border-radius: 4px; image-rendering: pixelated; }
.shots figcaption { margin-top: 4px; line-height: 1.35; } .shots b { color: var(--ink); }
@media (max-width: 480px) { .shots { grid-template-columns: repeat(2, 1fr); } .found { padding: 12px; } }
"""
CHANGE = "change of prediction"
"""The score of a method that has none of its own."""
TITLES = {
    "image": "image",
    "restored": "estimate of the clean image",
    "perturbation": "estimated perturbation",
    "looks_before": "where the victim looks",
    "looks_after": "where it looks in the estimate",
}
"""The pictures of an image, in their order."""


def draw(
    folder: Path,
    image: Tensor,
    restored: Tensor | None,
    looks: Mapping[str, Tensor | None],
) -> tuple[dict[str, str], float | None]:
    """Writes the pictures of one image as PNG.

    Args:
        folder: where to.
        image: (C, H, W) in [0, 1].
        restored: (C, H, W) in [0, 1], the estimate of the clean image.
        looks: ``looks_before`` and ``looks_after``, (1, H, W) in [0, 1].

    Returns:
        Name of a picture -> its file; and the perturbation that is shown as white, its negative as black.
    """
    found: dict[str, Pixels] = {"image": to_uint8(image)}
    limit = None
    if restored is not None:
        limit = max(1, int(np.ceil(float((image - restored).abs().max()) * 255 - 1e-3))) / 255
        found["restored"] = to_uint8(restored)
        found["perturbation"] = to_uint8(residual(image, restored, limit))
    shown = {"looks_before": image, "looks_after": restored}
    for name, under in shown.items():
        over = looks.get(name)
        if over is not None and under is not None:
            found[name] = _heat(under, over)
    return {name: save_figure(pixels, folder / f"{name}.png").name for name, pixels in found.items()}, limit


def _heat(image: Tensor, looks: Tensor) -> Pixels:
    """A map in colours over the image in grey."""
    grey = to_uint8(image.mean(0, keepdim=True)) / 255
    heat = np.asarray(colormaps["inferno"](looks[0].double().cpu().numpy()))[..., :3]
    mixed = torch.from_numpy(0.4 * grey + 0.6 * heat)
    return to_uint8(mixed.permute(2, 0, 1))


def write_diagnosis(
    path: Path, records: Sequence[Mapping[str, Any]], *, runs: Sequence[str], aside: Sequence[str] = ()
) -> Path:
    """Writes the page.

    Args:
        path: the file to write; pictures are named relative to its folder.
        records: of each file, see ``redlab.runs.diagnose``; the attacked ones come first on the page.
        runs: a line on each run that was asked.
        aside: what else there is to know of the files, plain text.

    Returns:
        ``path``.
    """
    read = [record for record in records if "fault" not in record]
    attacked = [record for record in read if record["attacked"]]
    refused = [record for record in records if "fault" in record]
    return write_page(path, "Diagnosis", _parts(records, read, attacked, refused, runs, aside), _STYLE)


def _parts(
    records: Sequence[Mapping[str, Any]],
    read: Sequence[Mapping[str, Any]],
    attacked: Sequence[Mapping[str, Any]],
    refused: Sequence[Mapping[str, Any]],
    runs: Sequence[str],
    aside: Sequence[str],
) -> Iterator[str]:
    yield f"<h1>Diagnosis of {len(records)} image{'s' if len(records) != 1 else ''}</h1>"
    yield f"<p class='summary'>{escape(chr(10).join([*runs, *aside]))}</p>"
    yield "<div class='tiles'>"
    yield tile_html(f"{len(attacked)}", "attacked", WRONG)
    yield tile_html(f"{len(read) - len(attacked)}", "no sign of an attack", RIGHT)
    if refused:
        yield tile_html(f"{len(refused)}", "not examined", INK)
    yield "</div>"
    if names := Counter(record["attack"] for record in attacked if record["attack"]):
        yield "<h2>By attack</h2><div class='card'><div class='scroll'><table><thead><tr><th>attack</th><th>images</th>"
        yield "</tr></thead><tbody>"
        for name, count in names.most_common():
            yield f"<tr><td>{escape(name)}</td><td>{count}</td></tr>"
        yield "</tbody></table></div></div>"
    for title, group in (
        ("Attacked", sorted(attacked, key=lambda record: -record["score"])),
        ("No sign of an attack", [record for record in read if not record["attacked"]]),
    ):
        if group:
            yield f"<h2>{title}</h2>"
            yield from map(_card, group)
    if refused:
        yield "<h2>Not examined</h2>"
        for record in refused:
            head = f"<h3>{escape(record['file'])} <span class='pill refused'>not examined</span></h3>"
            yield f"<div class='card found'>{head}<p>{escape(record['fault'])}</p></div>"


def _card(record: Mapping[str, Any]) -> str:
    attacked = record["attacked"]
    verdict = "no sign of an attack"
    if attacked:
        verdict = "attacked"
        if record["attack"]:
            verdict += f": {record['attack']} ({percent(record['share'])})"
    by = "by the change of prediction, " if record["scored_by"] == CHANGE else ""
    says = f"{by}score {record['score']:.3g}, threshold {record['threshold']:.3g}"
    if record["note"]:
        says += f"; {record['note']}"
    captions = {name: f"<b>{escape(title)}</b>" for name, title in TITLES.items()}
    for name, when in (("image", "before"), ("restored", "after")):
        captions[name] += "".join(
            f"<br>{escape(who)}: {escape(label)} ({percent(share)})" for who, (label, share) in record[when].items()
        )
    if record["limit"] is not None:
        captions["perturbation"] += f"<br>white and black: ±{round(record['limit'] * 255)}/255"
    shots = "".join(
        f"<figure><img loading='lazy' alt='{escape(TITLES[name])}' src='{quote(record['pictures'][name])}'>"
        f"<figcaption>{captions[name]}</figcaption></figure>"
        for name in TITLES
        if name in record["pictures"]
    )
    beyond = ""
    if "restored" not in record["pictures"] and record["after"]:
        beyond = "; ".join(f"{who}: {label} ({percent(p)})" for who, (label, p) in record["after"].items())
        beyond = f"<p>{escape(beyond)}</p>"
    pill = f"<span class='pill{' attacked' if attacked else ''}'>{escape(verdict)}</span>"
    return (
        f"<div class='card found'><h3>{escape(record['file'])} {pill}</h3><p>{escape(says)}</p>{beyond}"
        f"<div class='shots'>{shots}</div></div>"
    )
