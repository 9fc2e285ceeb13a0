"""The scales of each paper, with the runs of each of its studies."""

from omegaconf import OmegaConf

from redlab.runs.config import compose, conf_dir
from redlab.studies import STUDIES, find

PAPERS = sorted((conf_dir() / "study").glob("*.yaml"))


def scales(paper: str) -> dict[str, list[str]]:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / f"{paper}.yaml").scales)


def test_every_paper_with_studies_has_its_scales() -> None:
    assert [path.stem for path in PAPERS] == sorted({name.split("/")[0] for name in STUDIES})
    for path in PAPERS:
        found = scales(path.stem)
        assert {"smoke", "small", "paper"} <= set(found)
        assert all(type(word) is str for words in found.values() for word in words)


def test_the_small_scale_has_all_attacks_of_the_paper() -> None:
    assert not [word for word in scales("cdd_red")["small"] if word.startswith("~")]


def test_every_scale_and_every_run_composes() -> None:
    """Every scale with one run, every list of words with one scale: studies share both."""
    for paper in (path.stem for path in PAPERS):
        smallest, *others = scales(paper).values()
        studies = find(f"{paper}/*")
        runs = {tuple(words): (study, run) for study in studies for run, words in study.runs.items()}
        (study, run), *_ = runs.values()
        every = [(study, run, words) for words in others] + [(*of, smallest) for of in runs.values()]
        for study, run, words in every:
            cfg = compose(study.overrides(run, words, ["seed=3"]))
            assert cfg.seed == 3
            assert f"method={cfg.choices.method}" in study.runs[run]


def test_overrides_of_evaluations_compose() -> None:
    for study in find("*"):
        smallest = next(iter(scales(study.id.split("/")[0]).values()))
        for evaluation in study.evaluations.values():
            if evaluation.overrides:
                compose(study.overrides(evaluation.run, smallest, evaluation.overrides))
