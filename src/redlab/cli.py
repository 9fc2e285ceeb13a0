"""The two commands. Errors end in one sentence and exit code 1; ``debug=true`` shows the traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from redlab.config import ConfigError, conf_dir, explain, finalise, parse, with_choices

_EVALUATE_HELP = """\
python evaluate.py run=<folder or checkpoint> [override ...]      another mix, data set or victim: mix=... data=... victim=...
python evaluate.py study=<paper>/<table> [scale=smoke|small|paper] [seeds=[0,1]] [override ...]

Further keys: out=<folder> (where the numbers go), debug=true (full tracebacks).
"""


def train() -> int:
    """``python train.py``: composes, validates, trains, tests, reports."""
    return _guarded(_train, sys.argv[1:])


def evaluate() -> int:
    """``python evaluate.py``: tests a run, or makes a table or figure of a paper."""
    return _guarded(_evaluate, sys.argv[1:])


def _train(argv: list[str]) -> None:
    sys.argv[1:] = _resume_arguments(argv)
    # Hydra then raises instead of printing its own report, and _guarded says it in one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_job)()


def _job(cfg: DictConfig) -> float:
    from redlab import run  # imports torch and lightning, which --help and a misspelt key need not wait for

    settings = HydraConfig.get()
    argv = list(sys.argv)
    if settings.mode == RunMode.MULTIRUN:
        _pin_children_to_this_job(settings)
    try:
        final = finalise(with_choices(cfg, settings.runtime.choices))
        metrics = run.train(final, Path(settings.runtime.output_dir))
    finally:
        sys.argv = argv
    return metrics.get("test/restored_accuracy", metrics.get("test/clean_accuracy", 0.0))


def _pin_children_to_this_job(settings: Any) -> None:
    """Makes Lightning's DDP children run this job of a sweep, not the whole sweep again."""
    config: Any = HydraConfig.instance().cfg
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = settings.runtime.output_dir
    OmegaConf.set_readonly(config.hydra, True)
    sys.argv[1:] = [*settings.overrides.task, "hydra.mode=RUN"]


def _resume_arguments(argv: list[str]) -> list[str]:
    """``resume=<folder>`` stands for the folder's own overrides and the same output folder."""
    resume = [a for a in argv if a.startswith("resume=")]
    if not resume:
        return argv
    folder = Path(resume[-1].removeprefix("resume="))
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise ConfigError(f"resume={folder}: no run in that folder (.hydra/overrides.yaml is missing).")
    return [*OmegaConf.load(stored), *(a for a in argv if a not in resume), f"hydra.run.dir={folder}"]


def _evaluate(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(_EVALUATE_HELP)
        return
    own: dict[str, Any] = {"run": None, "study": None, "scale": "small", "seeds": [0], "out": None, "debug": False}
    overrides = []
    for word in parse(argv):
        if word.get_key_element() in own:
            own[word.get_key_element()] = word.value()
        else:
            overrides.append(str(word.input_line))
    if (own["run"] is None) == (own["study"] is None):
        raise ConfigError("Give run=<folder or checkpoint> or study=<paper>/<table>.")
    from redlab import run

    if own["run"] is not None:
        stamp = time.strftime("%Y-%m-%d/%H-%M-%S")
        run.evaluate(Path(own["run"]), overrides, Path(own["out"] or f"outputs/{stamp}_evaluate"))
    else:
        run.study(own["study"], own["scale"], own["seeds"], overrides, Path(own["out"] or "results"))


def _guarded(command: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    debug = any(a.lower() == "debug=true" for a in argv)
    try:
        command(list(argv))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "Stopped":
            print(f"{error}", file=sys.stderr)
            return 143
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _sentence(error: BaseException) -> str:
    """What the user reads. Hydra wraps the errors of what it instantiates: the cause speaks."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error)
    if isinstance(error, (ValueError, OSError, ImportError)):
        return str(error)
    return f"{type(error).__name__}: {error} (debug=true shows where)"
