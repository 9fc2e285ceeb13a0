"""What a user sees while a batch takes long."""

import re

from redlab.attacks.watched import Level
from redlab.runs import console
from redlab.runs.console import Watch


def test_long_crafting_stands_on_the_bar_and_in_a_file(tmp_path, monkeypatch):
    clock, shown = [100.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    watch = Watch(tmp_path / "crafting.log", shown.append)
    for step in range(61):
        watch([Level("on lenet", 0, 1), Level("boundary", 0, 1), Level("step", step, 61)])
        clock[0] += 2
    watch([])
    assert shown[0] == "crafting boundary · step 2/61, about 2:00 left"  # not in the first seconds
    assert shown[29] == "crafting boundary · step 31/61, about 1:02 left"
    assert shown[-1] == ""
    lines = (tmp_path / "crafting.log").read_text().splitlines()
    assert [re.sub(r"^[\d-]+ [\d:]+ ", "", line) for line in lines] == [
        "crafting boundary · step 31/61, about 1:02 left, 1:00 so far",
        "crafting boundary · step 61/61, about 0:02 left, 2:00 so far",
    ]


def test_short_crafting_says_nothing(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    watch = Watch(tmp_path / "crafting.log")
    for _ in range(100):  # batches of three seconds each
        for step in range(3):
            watch([Level("step", step, 3)])
            clock[0] += 1
        watch([])
    assert not (tmp_path / "crafting.log").exists()
    assert capsys.readouterr().out == ""


def test_where_there_is_no_bar_it_is_said_aloud(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    watch = Watch(tmp_path / "crafting.log", every=10)
    for step in range(3):
        watch([Level("on lenet", 1, 2), Level("step", step, 3)])
        clock[0] += 8
    assert "crafting on lenet 2/2 · step 3/3, about 0:03 left" in capsys.readouterr().out
