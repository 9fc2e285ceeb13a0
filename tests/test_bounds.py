"""The lower bounds of pyproject.toml. That the suite passes with them shows when it runs with them: see .ci/run."""

import re
import tomllib
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "builtins.eval"])
def test_hydra_runs_no_command_that_a_config_names(target, tmp_path, monkeypatch):
    """With the oldest Hydra that is allowed as well, and whatever the environment says."""
    monkeypatch.setenv("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", target)
    with pytest.raises(InstantiationException):
        instantiate({"_target_": target, "_args_": [f"touch {tmp_path}/was_here"]})
    assert not list(tmp_path.iterdir())


def test_every_dependency_has_a_lower_bound_and_a_reason():
    text = PROJECT.read_text()
    for wanted in tomllib.loads(text)["project"]["dependencies"]:
        assert re.search(rf'"{re.escape(wanted)}",\s+# .{{10,}}', text), wanted
        assert ">=" in wanted
