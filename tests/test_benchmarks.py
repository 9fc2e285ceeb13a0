"""benchmarks/attacks.py runs, whichever libraries there are."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from redlab.victims import Victim, architectures

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def attacks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_of_attacks", FOLDER / "attacks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_and_the_numbers(attacks, monkeypatch, tmp_path, capsys):
    victim = Victim(architectures.small_cnn(10, 1, 28, widths=[2, 2]), num_classes=10)
    x = torch.rand(3, 1, 28, 28)
    monkeypatch.setattr(attacks, "victim_and_images", lambda *given: (victim, x, victim(x).argmax(1)))
    for library in ("torchattacks", "foolbox", "adv_lib.attacks", "art.attacks.evasion", "pyautoattack.autopgd_base"):
        monkeypatch.setitem(sys.modules, library, None)
    out = tmp_path / "table.json"
    words = ["--attacks", "fgsm", "apgd", "--repeats", "2", "--share", "0.05", "--out", str(out), "--without", "art"]
    attacks.main(words)
    shown = capsys.readouterr().out
    assert shown.count("not installed") == 5
    said = json.loads(out.read_text())
    assert set(said["results"]) == {"fgsm", "apgd"}
    assert torch.__version__.startswith(said["versions"]["torch"])
    assert "pip install" in said["results"]["fgsm"]["foolbox"]["missing"]
    own = said["results"]["apgd"]["redlab"]
    assert len(own["seconds"]) == len(own["times"]) == 2
    assert 0 <= own["success"] <= 100


@pytest.mark.parametrize(
    ("options", "ours", "theirs"),
    [([], "Victim", "ImageClassifier"), (["--plain"], *["ImageClassifier"] * 2), (["--fold-peers"], *["Victim"] * 2)],
    ids=["own", "plain", "folded"],
)
def test_who_gets_the_victim_and_who_the_network_as_it_is(attacks, monkeypatch, options, ours, theirs):
    victim, given = Victim(architectures.small_cnn(10, 1, 28, widths=[2, 2]), num_classes=10), {}
    x = torch.rand(3, 1, 28, 28)

    def entries(*_, **__):
        def run(who):
            return lambda model, images, _labels: given.setdefault(who, type(model).__name__) and images

        return {"fgsm": attacks.Entry("linf", 1, {who: run(who) for who in ("redlab", "foolbox")})}

    monkeypatch.setattr(attacks, "victim_and_images", lambda *given: (victim, x, victim(x).argmax(1)))
    monkeypatch.setattr(attacks, "entries", entries)
    attacks.main(["--attacks", "fgsm", "--repeats", "1", *options])
    assert given == {"redlab": ours, "foolbox": theirs}


def test_the_bare_loop_asks_for_gradients_of_the_images_alone(attacks):
    victim = Victim(architectures.small_cnn(10, 1, 28, widths=[2, 2]), num_classes=10)
    calls = []
    victim.register_forward_hook(lambda _, given, out: calls.append((given[0].requires_grad, out.requires_grad)))
    x = torch.rand(3, 1, 28, 28)
    for backward in (True, False):
        attacks.bare_loop(victim, x, torch.zeros(3, dtype=torch.int64), 2, backward)
    assert calls == [(True, True)] * 2 + [(False, False)] * 2


def test_the_cost_of_a_mix(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_of_mix", FOLDER / "mix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["mix.py", "--repeats", "1"])
    module.main()
    assert "small_cnn" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_crafts_the_same_images_in_three_ways(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_of_a_step", FOLDER / "step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    try:
        module.main(["--width", "2", "--window", "1", "--repeats", "1", "--out", str(tmp_path / "step.json")])
    finally:
        torch.set_num_threads(threads)
    said = json.loads((tmp_path / "step.json").read_text())["seconds"]
    assert len(said) == 5
    assert min(said.values()) > 0
