"""Every study of a paper runs, at the scale that says nothing about the methods."""

from pathlib import Path

import pytest

from redlab.runs import lab
from redlab.studies import Card, find

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
]

WITHOUT_NUMBERS = {"gred/table6": "its detectors are so bad that no attack gets past them"}


@pytest.mark.parametrize("paper", ["add_defense", "attunet_gan", "cdd_red", "gred", "leaderboard"])
def test_every_study_runs_and_leaves_a_card(paper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = lab.studies(f"{paper}/*", "smoke", [0], [], tmp_path / "results")
    assert [card.study for card in made] == [study.id for study in find(f"{paper}/*")]
    for card in made:
        data = f"_{card.data}" if card.runs else ""  # params counts, and trains nothing
        path = tmp_path / "results" / f"{card.study}{data}_smoke.json"
        assert Card.load(path) == card
        assert card.data.endswith("_validation") == card.study.split("/")[1].startswith(
            "why_"
        )  # and so does the file's name
        assert card.numbers, card.study
        assert path.with_suffix(".md").is_file()
        if card.study not in WITHOUT_NUMBERS:
            assert not [claim["text"] for claim in card.claims if claim["verdict"] == "no number"], card.study
