"""The short form of kill.py: a kill of each kind of job, which then goes on as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the ranks under /proc"),
]


@pytest.mark.parametrize("only", ["train cdd_red", "two ranks add_defense", "bank", "sweep", "study"])
def test_a_killed_job_goes_on(only, clean_env):
    command = [sys.executable, str(Path(__file__).with_name("kill.py")), "--kills", "1", "--only", only]
    done = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 went on" in done.stdout
