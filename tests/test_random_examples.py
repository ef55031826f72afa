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

TESTS = Path(__file__).parent
PROPERTIES = (
    "test_config.py::test_every_field_survives_json_repr_and_pickle",
    "test_series.py::test_series_count_what_brute_force_counts",
    "test_lengths.py::test_a_request_moves_one_way_with_a_parameter",
)
DRAWN = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_drawn(x):
    open("drawn.txt", "a").write(f"{x}\\n")
"""


def run(seed, *names, cwd=TESTS):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x"]
    command += ["-p", "conftest", "-k", "not conftest"] if cwd != TESTS else []
    command += ["--hypothesis-profile=random", f"--hypothesis-seed={seed}", *names]
    env = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_new_examples_find_nothing_new():
    seed = random.SystemRandom().randrange(2**32)
    done = run(seed, *PROPERTIES)
    again = f"pytest --hypothesis-profile=random --hypothesis-seed={seed}"
    assert done.returncode == 0, f"{again}\n{done.stdout[-4000:]}"


def test_another_seed_draws_other_examples(tmp_path):
    drawn = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "test_it.py").write_text(DRAWN)
        assert run(seed, "test_it.py", cwd=folder).returncode == 0
        drawn.append((folder / "drawn.txt").read_text().split())
    assert drawn[0] != drawn[1]
    assert 10 <= len(drawn[0]) <= 40
