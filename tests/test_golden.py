"""Today's numbers are those of the golden set, ``golden.json``, on every version.

Python, numpy and scipy may round a logarithm differently in its last bit; more than
1e-12, relative, is another result. ``python tests/test_golden.py`` writes the set anew:
only after a number was found to be wrong.
"""

import json
from pathlib import Path

import pytest

from llminfer import SimulationConfig
from llminfer.experiment import run_many

FILE = Path(__file__).with_name("golden.json")
GOLDEN = json.loads(FILE.read_text("utf-8"))


def numbers(fields):
    """What a configuration gives: from theory, and from a run."""
    config = SimulationConfig(**fields)
    theory = {"max_stable_rate": config.max_stable_rate}
    if config.clients is None:
        theory["offered_load"] = config.offered_load
    return theory | run_many([config], n_jobs=1)[0]


@pytest.mark.filterwarnings("ignore::llminfer.OverloadWarning")
@pytest.mark.parametrize("name", GOLDEN)
def test_results_are_those_of_the_golden_set(name):
    its = GOLDEN[name]
    assert numbers(its["configuration"]) == pytest.approx(
        its["numbers"], rel=1e-12, abs=0.0, nan_ok=True
    )


def test_the_golden_set_has_a_bit_of_everything():
    configs = [its["configuration"] for its in GOLDEN.values()]
    names = ("server", "scheduling_policy", "router", "batch_control", "step_law")
    varied = {(n, config[n]) for config in configs for n in names if n in config}
    assert len(varied) >= 10
    assert {"clients", "patience", "prefix_caching", "kv_blocks"} <= {
        name for config in configs for name in config
    }
    for its in GOLDEN.values():  # no number that every run would give
        assert its["numbers"]["total_requests"] > 150
        assert len(set(its["numbers"].values())) > 50


if __name__ == "__main__":
    for its in GOLDEN.values():
        its["numbers"] = numbers(its["configuration"])
    FILE.write_text(json.dumps(GOLDEN, indent=1) + "\n", "utf-8")
