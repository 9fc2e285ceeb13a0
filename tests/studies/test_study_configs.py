from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from redlab.runs.config import compose, conf_dir
from redlab.studies import Study

STUDIES = sorted((conf_dir() / "study").rglob("*.yaml"))


def load(path: Path) -> Study:
    study: Study = instantiate(OmegaConf.load(path))
    return study


def test_there_are_studies() -> None:
    assert STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_file_is_the_study_that_its_path_names(path: Path) -> None:
    study = load(path)
    assert study.id == f"{path.parent.name}/{path.stem}"
    assert {"smoke", "small", "paper"} <= set(study.scales)
    assert all(type(word) is str for words in study.scales.values() for word in words)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_run_of_every_scale_composes(path: Path) -> None:
    study = load(path)
    for scale in study.scales:
        for column in study.runs:
            words = study.overrides(column, scale, ["seed=3"])
            cfg = compose(words)
            assert cfg.seed == 3
            assert f"method={cfg.choices.method}" in study.runs[column]
