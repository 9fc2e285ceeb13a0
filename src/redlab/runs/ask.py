"""The command lines of ``redlab diagnose`` and ``redlab export``, which ask trained runs and train nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redlab.runs.check import ConfigError
from redlab.runs.config import parse
from redlab.runs.folders import fresh, path_of, take_away_unused
from redlab.runs.words import names_in
from redlab.spelling import suggest

_DIAGNOSE = """\
redlab diagnose <image or folder> ... run=<folder or checkpoint>[,<another>]
redlab diagnose --demo

Says of images that nobody has labelled which were attacked, by what, and what they showed before: diagnosis.html with
pictures, diagnosis.csv and .json. Of several runs, run=[a,b], each question is answered by the first that can.
Further keys: out=<folder> (where it goes), false_alarms=0.01 (share of clean images that may count as attacked; the
threshold is set by the clean validation images of the run), floats=true (estimates also as float32, restored.npy),
allow=[my_module.MyMethod] (names that the checkpoint may use besides those of redlab), debug=true (full tracebacks).
"""

_EXPORT = """\
redlab export run=<folder or checkpoint> [to=onnx] [out=<folder>]

to=onnx        model.onnx: what the method says of images, as one program; pip install 'redlab[export]'
to=torch       model.pt2, the same for torch.export.load
to=pretrained  weights as safetensors, config and a model card, for redlab.load and redlab diagnose
With the first two go model.json (sizes, names, threshold) and infer.py, which asks the program about image files.
The program is compared with redlab before this ends. Further keys: allow=[my_module.MyMethod], debug=true.
"""
_DEMO = "--demo"


def diagnose(argv: list[str]) -> None:
    """``redlab diagnose``."""
    if not argv or {"-h", "--help"} & set(argv):
        print(_DIAGNOSE)
        return
    demo, paths = _DEMO in argv, [path_of(word) for word in argv if "=" not in word or Path(word).exists()]
    paths = [path for path in paths if str(path) != _DEMO]
    defaults: dict[str, Any] = {"run": [], "out": None, "allow": [], "debug": False, "false_alarms": 0.01}
    own = _words([w for w in argv if "=" in w and not Path(w).exists()], defaults | {"floats": False}, "diagnose")
    if not demo and not (own["run"] and paths):
        missing = "run=<folder or checkpoint>" if paths else "images to look at"
        raise ConfigError(f"Give {missing}: redlab diagnose <image or folder> run=<folder or checkpoint>.")
    if demo and (own["run"] or paths):
        raise ConfigError("--demo has images and a run of its own: leave out others.")
    share = own["false_alarms"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ConfigError(f"false_alarms={share} must be a share of clean images in [0, 1), such as 0.01.")
    if own["floats"] not in (True, False):
        raise ConfigError(f"floats={own['floats']} must be true or false.")
    from redlab.runs.diagnose import report

    how: dict[str, Any] = {"allow": names_in(own["allow"]), "false_alarms": float(share)}
    with _folder(own["out"], "diagnose") as out:
        report(None if demo else paths, own["run"], out, floats=own["floats"], **how)


def export(argv: list[str]) -> None:
    """``redlab export``."""
    if not argv or {"-h", "--help"} & set(argv):
        print(_EXPORT)
        return
    own = _words(argv, {"run": [], "out": None, "to": "onnx", "allow": [], "debug": False}, "export")
    if len(own["run"]) != 1:
        raise ConfigError("Give one run=<folder or checkpoint>, such as run=outputs/<date>/<time>.")
    from redlab.runs.export import export as write

    with _folder(own["out"], "export") as out:
        print(f"Written: {write(own['run'][0], out, str(own['to']), allow=names_in(own['allow']))}")


def _words(argv: Sequence[str], own: dict[str, Any], command: str) -> dict[str, Any]:
    """The values of a command's keys; ``run`` is a list of paths.

    Raises:
        ConfigError: there is no such key.
    """
    for word in argv:
        key, sign, text = word.partition("=")
        if key not in own or not sign:
            raise ConfigError(f"{command} has no key {key!r}.{suggest(key, list(own))} See redlab {command} --help.")
        if key == "run" and text and not text.startswith("["):
            own[key] = [path_of(text)]
        elif key == "out" and text:
            own[key] = path_of(text)
        else:
            (own[key],) = (override.value() for override in parse([word]))
            if key == "run":
                own[key] = [path_of(str(run)) for run in names_in(own[key])]
    return own


@contextmanager
def _folder(given: Path | None, command: str) -> Iterator[Path]:
    """Where a command writes: a new folder where none is given, which goes if nothing was written."""
    try:
        yield given or Path(fresh(f"outputs/{time.strftime('%Y-%m-%d/%H-%M-%S')}_{command}"))
    finally:
        take_away_unused()
