"""The scales of each paper, with the runs of each of its studies."""

import functools

import pytest
from omegaconf import OmegaConf

from redlab.runs.config import compose, conf_dir, finalise, override_stored, parse
from redlab.studies import STUDIES, Scale, find, merge_overrides

PAPERS = sorted((conf_dir() / "study").glob("*.yaml"))
GIVEN = {
    "add_defense": {},
    "attunet_gan": {},
    "cdd_red": {"paper": ["data.root=there", "data.num_classes=1000"]},
    "gred": {},
    "leaderboard": {},
    "redrl": {"paper": ["data.root=there"]},
}
"""What a user has to say."""


def scales(paper: str) -> dict[str, Scale]:
    found = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / f"{paper}.yaml").scales)
    return {name: Scale.of(node) for name, node in found.items()}


@functools.cache
def composed(words: tuple[str, ...]):
    return compose(list(words))


def test_every_paper_with_studies_has_its_scales() -> None:
    assert [path.stem for path in PAPERS] == sorted({name.split("/")[0] for name in STUDIES})
    for path in PAPERS:
        found = scales(path.stem)
        of_a_paper = set() if path.stem == "leaderboard" else {"paper"}
        assert {"smoke", "small", *of_a_paper} <= set(found)
        for scale in found.values():
            assert all(type(word) is str for words in (scale.common, *scale.named.values()) for word in words)


def test_the_small_scale_has_all_attacks_of_the_paper() -> None:
    for path in PAPERS:
        small = scales(path.stem)["small"]
        assert not [w for words in (small.common, *small.named.values()) for w in words if w.startswith("~")]


def runs(paper: str) -> list[tuple[str, ...]]:
    """The words of every run of a paper's studies, once each."""
    return list(dict.fromkeys(tuple(words) for study in find(f"{paper}/*") for words in study.runs.values()))


def check(paper: str, scale: str, own: tuple[str, ...]) -> None:
    """A run composes at a scale, and what the scale says stands there, but where the run says otherwise of that key."""
    of_scale = scales(paper)[scale]
    own, words = tuple(of_scale.words(own)), of_scale.common
    cfg = composed(tuple(merge_overrides(words, own, ["seed=3"])))
    assert cfg.seed == 3
    assert f"method={cfg.choices.method}" in own
    of_run = {override.key_or_group for override in parse(own) if override.package is None}
    for override in parse(list(words)):
        key = override.key_or_group
        if key in of_run:
            assert key not in cfg.choices, "a whole group, with all that the scale says of it"
        elif override.package is None:  # of a group inside another one its values stand there, not its name
            value = cfg.choices[key] if key in cfg.choices else OmegaConf.select(cfg, key)
            assert within(override.value(), value), (key, value)


def within(part: object, whole: object) -> bool:
    """Whether all that a word says is there; a mapping is added to what was there before."""
    if isinstance(part, dict):
        return all(within(value, whole[str(key)]) for key, value in part.items())
    return whole == part


@pytest.mark.slow
def test_every_word_of_every_scale_and_run_composes() -> None:
    """Every scale with one run, and one scale with the words of all runs of a method together."""
    for paper in (path.stem for path in PAPERS):
        smallest, *others = scales(paper)
        first, *_ = runs(paper)
        for scale in others:
            check(paper, scale, first)
        words = scales(paper)[smallest].words
        for method in dict.fromkeys(word for own in runs(paper) for word in own if word.startswith("method=")):
            mine = [words(own) for own in runs(paper) if method in own]
            if len({word for own in mine for word in own if word.startswith("mix=")}) < 2:  # else they contradict
                check(paper, smallest, tuple(merge_overrides(*mine)))
            else:
                for own in mine[:2]:
                    check(paper, smallest, tuple(own))


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "scale"), [(path.stem, scale) for path in PAPERS for scale in scales(path.stem)])
def test_every_run_composes_at_every_scale(paper: str, scale: str) -> None:
    for own in runs(paper):
        check(paper, scale, own)
        found = scales(paper)[scale]
        words = merge_overrides(found.common, found.words(own), GIVEN[paper].get(scale, []), ["seed=3"])
        finalise(composed(tuple(words)))


@pytest.mark.slow
def test_what_an_evaluation_changes_can_be_changed_in_a_finished_run() -> None:
    for paper in (path.stem for path in PAPERS):
        smallest, *_ = scales(paper).values()
        asked = [(study, evaluation) for study in find(f"{paper}/*") for evaluation in study.evaluations.values()]
        for changes, (study, evaluation) in {tuple(each[1].overrides): each for each in asked}.items():
            if changes:
                stored = finalise(composed(tuple(study.overrides(evaluation.run, smallest))))
                override_stored(OmegaConf.to_container(stored), smallest.words(changes))
