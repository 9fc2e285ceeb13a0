import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from redlab.methods import CDDRED

CONF = Path(__file__).parents[2] / "conf" / "method"
OBJECTS = {"victims", "optimizer", "scheduler"}
FROM_OUTSIDE = {"channels": "${data.channels}", "seed": "${seed}"}


def load(name):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=False)


def test_scalars_equal_the_defaults_both_ways():
    config = {k: v for k, v in load("cdd_red").items() if k not in {"defaults", "_target_", *OBJECTS}}
    defaults = {k: p.default for k, p in inspect.signature(CDDRED).parameters.items() if k not in OBJECTS}
    assert {k: config.pop(k) for k in FROM_OUTSIDE} == FROM_OUTSIDE
    expected = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items() if k not in FROM_OUTSIDE}
    assert config == expected
    assert {k: type(v) for k, v in config.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize("name", ["do", "ds"])
def test_baselines_change_the_loss_switches_alone(name):
    config = load(name)
    assert config.pop("defaults") == ["cdd_red", "_self_"]
    assert config.keys() == {"lambda_benign", "lambda_adv", "aug_mode"}
    assert config["lambda_adv"] == 0
    assert config["aug_mode"] == "none"
    assert (config["lambda_benign"] == 0) == (name == "do")


def test_recipe():
    config = load("cdd_red")
    assert config["optimizer"] == {"lr": 1e-4, "weight_decay": 1e-4}
    assert (config["scheduler"]["step_size"], config["scheduler"]["gamma"]) == (140, 0.1)
