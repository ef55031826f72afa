"""Properties on examples that no run has seen.

All other runs of a property see the same examples. Here some see a few new ones; for
more, and of all properties, there is ``pytest --hypothesis-profile=random``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from hypothesis import settings

TESTS = Path(__file__).parent
PROPERTIES = (
    "test_config.py::test_every_field_survives_json_repr_and_pickle",
    "test_lengths.py::test_a_request_moves_one_way_with_a_parameter",
)


def test_the_profile_draws_anew_each_time():
    found = settings.get_profile("random")
    assert not found.derandomize
    assert found.deadline is None


def test_new_examples_find_nothing_new():
    seed = random.SystemRandom().randrange(2**32)
    own = ["--hypothesis-profile=random", f"--hypothesis-seed={seed}", *PROPERTIES]
    without = [f"-pno:{name}" for name in ("cacheprovider", "nbval", "anyio")]
    command = [sys.executable, "-m", "pytest", "-q", *without, *own]
    env = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    told = {"capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run(command, cwd=TESTS, env=env, check=False, **told)
    again = f"pytest --hypothesis-profile=random --hypothesis-seed={seed}"
    assert done.returncode == 0, f"{again}\n{done.stdout[-4000:]}"
