import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from redlab.metrics.restoration import QUANTITIES

from redlab.report import ACCURACIES, Table, metrics_table, write_report
from redlab.report.run_report import tables_of

METRICS = {"test/clean_accuracy": 0.9612, "test/attacked_accuracy": 0.0425, "test/attacked_accuracy/pgd": 0.011}


@pytest.fixture
def page(tmp_path: Path) -> str:
    pixels = np.zeros((5, 6, 3), dtype=np.uint8)
    pixels[2, 3] = (10, 200, 30)
    path = write_report(
        tmp_path / "deep/report.html",
        title="Run <1> & co",
        summary="line one\n<img src=x>",
        metrics=METRICS,
        figures={'a "quoted" caption': pixels},
        config={"lr": 1e-4, "path": Path("x"), "text": "</pre><script>alert(1)</script>"},
        tables=[metrics_table(METRICS, ACCURACIES, "Accuracy per attack")],
        verdicts=Table("Conclusions", ("conclusion", "ours"), (("d: DO < DS", "fails"),)),
    )
    return path.read_text(encoding="utf-8")


class Balanced(HTMLParser):
    """Checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_headline_comes_first_and_says_what_is_missing(page: str) -> None:
    order = [page.index(text) for text in ("96.1 %", "4.2 %", "not measured", "<h2>Figures", "<h2>Numbers")]
    assert order == sorted(order)
    assert page.index("<h2>Numbers") < page.index("<h2>Verdicts") < page.index("<h2>Configuration")
    assert page.count("not measured") == 2
    assert "1.1 %" in page
    assert '<td class="fails">fails</td>' in page


def test_nothing_external(page: str) -> None:
    assert "http" not in page
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "<script" not in page
    assert "<link" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_text_is_escaped_and_tags_balance(page: str) -> None:
    assert "Run &lt;1&gt; &amp; co" in page
    assert "<img src=x>" not in page
    assert "&lt;/pre&gt;&lt;script&gt;" in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


def test_the_picture_inside_is_the_picture_given(page: str) -> None:
    found = re.search(r"base64,([A-Za-z0-9+/=]+)", page)
    assert found is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))
    assert pixels.shape == (5, 6, 3)
    assert pixels[2, 3].tolist() == [10, 200, 30]
    assert pixels.sum() == 240


def test_no_headline_without_accuracies(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", title="t", summary="", metrics={}, figures={}, config="a: 1\n")
    assert "tile'" not in path.read_text(encoding="utf-8")


def test_on_a_phone_the_last_column_is_in_sight(tmp_path: Path) -> None:
    """Estimated as a browser lays it out that gives every column its longest word, at 0.62 em a character."""
    names = ("pgd", "local_search", "wasserstein_frank_wolfe")
    measures = (*QUANTITIES, "adaptive_restored_accuracy")
    metrics = {f"test/{m}{suffix}": 0.98765 for m in measures for suffix in ("", *(f"/{name}" for name in names))}
    path = write_report(
        tmp_path / "r.html", title="t", summary="", metrics=metrics, figures={}, config="", tables=tables_of(metrics)
    )
    page = path.read_text(encoding="utf-8")
    phone = re.search(r"@media \(max-width: 480px\).*?\n}\n", page, re.S)[0]  # type: ignore[index]

    def said(pattern: str) -> list[int]:
        return [int(value) for value in re.search(pattern, phone).groups()]  # type: ignore[union-attr]

    (body,), (head,) = said(r"table { font-size: (\d+)px"), said(r"th { font-size: (\d+)px")
    (around,), (first,) = said(r"th, td { padding: \d+px (\d+)px"), said(r"min-width: (\d+)px")
    (margin,), (inside,) = said(r"main { padding: \d+px (\d+)px"), said(r"\.card { padding: \d+px (\d+)px")
    tables = re.findall(r"<div class='scroll'><table>.*?</table></div>", page, re.S)
    assert len(tables) == 3
    for table in tables:
        rows = [
            re.findall(r"<t[hd]( class=\"number\")?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table)
        ]
        wide = first + 2 * around
        for (_, header), *cells in list(zip(*rows, strict=True))[1:]:
            assert all(whole for whole, _ in cells)
            wide += 2 * around + max(
                *(0.62 * head * len(word) for word in header.split()), *(0.62 * body * len(text) for _, text in cells)
            )
        assert wide <= 360 - 2 * margin - 2 * (inside + 1)
