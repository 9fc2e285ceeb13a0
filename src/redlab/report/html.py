"""One self-contained HTML page per run: everything is inside the file, nothing is fetched."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image

from redlab.report.canvas import INK, Pixels, figure_pixels
from redlab.report.figures import SHARE_COLOURS
from redlab.report.measures import Tile
from redlab.report.tables import Table, percent
from redlab.report.tables import html as table_html

_STYLE = """
:root { --ink:#1f2933; --muted:#697586; --rule:#e3e7ec; --good:#1a7f4b; --bad:#c0392b; --warn:#a86b00; }
* { box-sizing: border-box; }
body { margin:0; background:#f5f6f8; color:var(--ink); font:15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 26px; line-height:1.25; margin: 0 0 6px; }
h2 { font-size: 17px; margin: 38px 0 12px; }
h3 { font-size: 14px; margin: 0 0 10px; }
p { margin: 0 0 10px; }
ul { margin: 0; padding-left: 20px; overflow-wrap: anywhere; } a { color: #2b5d9b; }
.summary { color: var(--muted); white-space: pre-line; max-width: 80ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
.tile, .card { background:#fff; border:1px solid var(--rule); border-radius:10px; }
.tile { padding: 16px 18px; border-top: 4px solid var(--tone); }
.tile b { display:block; font-size: 30px; line-height:1.2; font-variant-numeric: tabular-nums; }
.tile small { font-size: 18px; line-height: 36px; color: var(--muted); }
.tile span { color: var(--muted); font-size: 13px; }
.card { padding: 18px; margin-bottom: 16px; }
figure { margin: 0; } figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--rule); }
.number { white-space: nowrap; }
th { color: var(--muted); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
.holds, .green { color: var(--good); font-weight: 600; } .fails, .red { color: var(--bad); font-weight: 600; }
.tie, .amber { color: var(--warn); font-weight: 600; }
.note { color: var(--muted); font-size: 13px; margin: 10px 0 0; }
details summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 12px 0 0; }
@media (max-width: 480px) {  /* a phone: five columns fit, the names of more stay while the numbers scroll */
  main { padding: 24px 12px 48px; }
  .card { padding: 12px 8px; }
  table { font-size: 12px; } th { font-size: 11px; }
  th, td { padding: 6px 3px; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
  th:first-child, td:first-child { overflow-wrap: anywhere; min-width: 56px; }
}
@media print { body { background:#fff; } .card, .tile { break-inside: avoid; } }
"""


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    figures: Mapping[str, Figure | Pixels],
    config: str | Mapping[str, object],
    tiles: Sequence[Tile] = (),
    tables: Sequence[Table] = (),
    verdicts: Table | None = None,
    checks: Table | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Writes the report of a run: headline numbers, figures, tables, verdicts, config.

    Args:
        path: the file to write; its folder is made where needed.
        title: heading of the page.
        summary: a few lines of plain text below it.
        figures: caption -> figure or (H, W, 3) uint8; packed into the page as PNG.
        config: YAML text, or plain values that are shown as JSON.
        tiles: the headline, "not measured" where one has no value; no headline without any.
        tables: further tables, usually the numbers per attack.
        verdicts: a table of conclusions whose cells may be "holds", "tie" or "fails".
        checks: whether the numbers can be believed, see ``redlab.report.checks``; below the headline.
        links: text -> path of another report, from the folder of this one.

    Returns:
        ``path``.
    """
    config_text = config if isinstance(config, str) else json.dumps(config, indent=2, default=str)
    parts = [f"<h1>{escape(title)}</h1>", f"<p class='summary'>{escape(summary)}</p>"]
    if tiles:  # a study's page has no such numbers of its own
        parts.append("<h2>Accuracy</h2><div class='tiles'>" + "".join(map(_tile, tiles)) + "</div>")
    if checks is not None and checks.rows:
        parts.append(f"<h2>Can these numbers be believed?</h2><div class='card'>{table_html(checks)}</div>")
    if figures:
        parts.append("<h2>Figures</h2>")
        parts += [_figure(caption, picture) for caption, picture in figures.items()]
    for heading, group in (("Numbers", list(tables)), ("Verdicts", [verdicts] if verdicts else [])):
        if group:
            parts.append(f"<h2>{heading}</h2>")
            parts += [f"<div class='card'>{table_html(table)}</div>" for table in group]
    if links:
        items = (f"<li><a href='{quote(where)}'>{escape(text)}</a></li>" for text, where in links.items())
        parts.append(f"<h2>Reports</h2><div class='card'><ul>{''.join(items)}</ul></div>")
    parts.append("<h2>Configuration</h2>")
    shown = f"<details><summary>resolved configuration</summary><pre>{escape(config_text)}</pre></details>"
    parts.append(f"<div class='card'>{shown}</div>")
    return write_page(path, title, parts)


def write_page(path: Path, title: str, parts: Iterable[str], style: str = "") -> Path:
    """Writes a page in the house style.

    Args:
        path: the file to write; its folder is made where needed.
        title: of the page, plain text.
        parts: what stands in it, as HTML; written one after the other.
        style: rules besides those of the house.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\n"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style></head>\n<body><main>\n"
        )
        file.writelines(f"{part}\n" for part in parts)
        file.write("</main></body></html>\n")
    return path


def tile_html(shown: str, text: str, tone: str = INK) -> str:
    """A number that stands out; ``shown`` is HTML, ``text`` is plain."""
    return f"<div class='tile' style='--tone:{tone}'><b>{shown}</b><span>{escape(text)}</span></div>"


def _tile(tile: Tile) -> str:
    shown = "<small>not measured</small>" if tile.value is None else percent(tile.value)
    return tile_html(shown, tile.text, SHARE_COLOURS.get(tile.series, INK))


def _figure(caption: str, picture: Figure | Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(figure_pixels(picture) if isinstance(picture, Figure) else picture).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure class='card'>{image}<figcaption>{escape(caption)}</figcaption></figure>"
