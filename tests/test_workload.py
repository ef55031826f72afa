"""The table of requests, and the files it is read from and written to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llminfer import (
    ConfigError,
    RequestGenerator,
    SimulationConfig,
    SimulationRunner,
    TraceError,
    Workload,
    constant_rate,
    sinusoidal_rate,
)

COLUMNS = ("arrival_time", "prompt_length", "output_length", "request_class")
LENGTH = st.integers(1, 2**40)


@st.composite
def workloads(draw):
    n = draw(st.integers(1, 30))
    arrivals = draw(st.lists(st.floats(0.0, 1e12), min_size=n, max_size=n))
    lengths = st.lists(LENGTH, min_size=n, max_size=n)
    return Workload.from_arrays(sorted(arrivals), draw(lengths), draw(lengths))


def assert_same(one, two):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@given(workload=workloads())
def test_a_workload_survives_csv_to_the_last_bit(workload, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "trace.csv"
    workload.to_csv(path)
    assert path.read_text().startswith("arrival_time,prompt_length,output_length\n")
    assert_same(Workload.from_csv(path), workload)


@given(workloads(), st.floats(0.01, 100.0))
def test_scaling_moves_arrivals_and_nothing_else(workload, factor):
    scaled = workload.scaled(factor)
    np.testing.assert_array_equal(scaled.arrival_time, workload.arrival_time / factor)
    for name in COLUMNS[1:]:
        np.testing.assert_array_equal(getattr(scaled, name), getattr(workload, name))


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf, "2", None])
def test_scaling_by_no_rate_is_refused(factor):
    work = Workload.from_arrays([0], [1], [1])
    with pytest.raises(ConfigError, match=r"^rate_factor="):
        work.scaled(factor)


def test_a_workload_is_a_table_of_its_own():
    arrivals = np.array([0.0, 1.0])
    work = Workload.from_arrays(arrivals, [3, 4], [5, 6])
    arrivals[1] = 99.0
    assert work.arrival_time.tolist() == [0.0, 1.0]
    frame = work.to_frame()
    assert list(frame) == ["request_id", *COLUMNS]
    assert frame["prompt_length"].tolist() == [3, 4]
    assert len(work) == 2
    assert "2 requests" in repr(work)
    requests = list(work.requests())
    assert [(r.id, r.arrival_time, r.prompt_length) for r in requests] == [
        (0, 0.0, 3),
        (1, 1.0, 4),
    ]
    assert requests[1].expected_output_length == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([], [], []), "arrival_time: empty"),
        (([0, math.nan], [1, 1], [1, 1]), r"arrival_time\[1\]=nan: must be"),
        (([0, math.inf], [1, 1], [1, 1]), r"arrival_time\[1\]=inf: must be"),
        (([-1, 0], [1, 1], [1, 1]), r"arrival_time\[0\]=-1: must be"),
        (([0, 2, 1], [1, 1, 1], [1, 1, 1]), r"arrival_time\[2\]=1: must be no earlier"),
        (([0, 1], [1], [1, 1]), "prompt_length: 1 values: must be 2"),
        (([0, 1], [1, 1], [1, 1, 1]), "output_length: 3 values: must be 2"),
        (([0, 1], [1, 0], [1, 1]), r"prompt_length\[1\]=0: must be a whole"),
        (([0, 1], [1, 1], [-3, 1]), r"output_length\[0\]=-3: must be a whole"),
        (([0, 1], [1, 1.5], [1, 1]), r"prompt_length\[1\]=1.5: must be a whole"),
        (([0, 1], [1, math.nan], [1, 1]), r"prompt_length\[1\]=nan: must be a whole"),
        (([0, 1], [1, 1], [1, 1e30]), r"output_length\[1\]=1e\+30: must be a whole"),
        ((["a", 1], [1, 1], [1, 1]), "arrival_time: must be numbers"),
        (([[0, 1]], [1, 1], [1, 1]), "arrival_time: of 2 dimensions"),
        ((5, [1], [1]), "arrival_time: of 0 dimensions"),
        (([0, [1]], [1, 1], [1, 1]), "arrival_time: must be numbers"),
    ],
)
def test_columns_that_are_no_workload_are_refused(arrays, message):
    with pytest.raises(TraceError, match=f"^{message}") as caught:
        Workload.from_arrays(*arrays)
    assert "\n" not in str(caught.value)


def test_a_generator_makes_what_the_configuration_makes():
    config = SimulationConfig(arrival_rate=4.0, num_requests=700, random_seed=5)
    generator = RequestGenerator(constant_rate(4.0), random_seed=5)
    assert_same(generator.generate(700), Workload.generate(config))
    wave = RequestGenerator(
        sinusoidal_rate(4.0, 2.0, 60.0),
        prompt_length_dist="constant",
        prompt_dist_params={"value": 12},
        output_length_dist="uniform",
        output_dist_params={"min": 2, "max": 5},
        random_seed=5,
    ).generate(300)
    assert set(wave.prompt_length) == {12}
    assert set(wave.output_length) == {2, 3, 4}


def test_a_given_workload_decides_number_and_rate():
    config = SimulationConfig(arrival_rate=1000.0, num_requests=10, warmup_requests=1)
    work = Workload.from_arrays([0.0, 100.0, 200.0], [5, 5, 5], [2, 2, 2])
    metrics = SimulationRunner(config, work).run()
    assert metrics["total_requests"] == 2
    assert metrics["simulation_time"] >= 100.0


# CSV files

PLAIN = "arrival_time,prompt_length,output_length\n"
DATED = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def read(tmp_path, content, **options):
    path = tmp_path / "trace.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Workload.from_csv(path, **options)


@pytest.mark.parametrize(
    "content",
    [
        PLAIN + "0,5,2\n1.5,6,3\n",
        PLAIN + "0,5,2\n1.5,6,3",
        (PLAIN + "0,5,2\n1.5,6,3\n").replace("\n", "\r\n"),
        PLAIN + "\n0,5,2\n\n\n1.5,6,3\n\n",
        "\ufeff" + PLAIN + "0,5,2\n1.5,6,3\n",
        PLAIN + ' 0 , 5 ,"2"\n1.5e0,6,3\n',
        "prompt_length,arrival_time,output_length,prompt_length\n5,0,2,8\n6,1.5,3,9\n",
        "user,output_length,arrival_time,prompt_length\nann,2,0,5\nbob,3,1.5,6\n",
        DATED + "2023-11-16 18:15:46.5,5,2\n2023-11-16 18:15:48.0000000,6,3\n",
    ],
)
def test_a_trace_is_read_however_it_is_laid_out(tmp_path, content):
    work = read(tmp_path, content)
    assert work.arrival_time.tolist() == [0.0, 1.5]
    assert work.prompt_length.tolist() == [5, 6]
    assert work.output_length.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty: must have a header and rows"),
        (PLAIN, "empty: must have a header and rows"),
        ("0,5,2\n1,5,2\n", "row 1: columns 0,5,2: must include arrival_time,prompt_"),
        ("arrival_time,prompt\n0,5\n", "row 1: columns arrival_time,prompt: must"),
        (PLAIN + "0,5,2\n1,5\n", "row 3: 2 fields: must have 3"),
        (PLAIN + "0,5,2,7\n", "row 2: 4 fields: must have 3"),
        (PLAIN + "\n\n0,5\n", "row 4: 2 fields: must have 3"),
        (PLAIN + "0,5,2\nnan,5,2\n", "row 3, arrival_time='nan': must be seconds"),
        (PLAIN + "inf,5,2\n", "row 2, arrival_time='inf': must be seconds"),
        (PLAIN + "-1,5,2\n", "row 2, arrival_time='-1': must be seconds"),
        (PLAIN + "soon,5,2\n", "row 2, arrival_time='soon': must be seconds"),
        (PLAIN + ",5,2\n", "row 2, arrival_time='': must be seconds"),
        (PLAIN + "0,5,2\n\nsoon,5,2\n", "row 4, arrival_time='soon': must be seconds"),
        (PLAIN + "0,-5,2\n", "row 2, prompt_length='-5': must be a whole number"),
        (PLAIN + "0,5,0\n", "row 2, output_length='0': must be a whole number"),
        (PLAIN + "0,5.5,2\n", "row 2, prompt_length='5.5': must be a whole number"),
        (PLAIN + "0,5,nan\n", "row 2, output_length='nan': must be a whole number"),
        (PLAIN + "0,5,\n", "row 2, output_length='': must be a whole number"),
        (
            PLAIN + "0,5,2\n\n1,x,2\n2,y,2\n",
            "row 4, prompt_length='x': must be a whole",
        ),
        (PLAIN + "0,1e3,2\n", "row 2, prompt_length='1e3': must be a whole number"),
        (PLAIN + f"0,{10**30},2\n", f"row 2, prompt_length='{10**30}': must be"),
        (PLAIN + "0,\N{FULLWIDTH DIGIT ONE},2\n", "row 2, prompt_length='"),
        (DATED + "2023-11-16 18:15:46.68,5,2\nyesterday,5,2\n", "row 3, TIMESTAMP='ye"),
        (DATED + "2023-13-16 18:15:46.68,5,2\n", "row 2, TIMESTAMP='2023-13-16"),
        (DATED + ",5,2\n", "row 2, TIMESTAMP=''"),
        (DATED + "NaT,5,2\n", "row 2, TIMESTAMP='NaT'"),
        (DATED + "now,5,2\n", "row 2, TIMESTAMP='now': must be seconds"),
        (DATED + "today,5,2\n", "row 2, TIMESTAMP='today': must be seconds"),
        (DATED + "2023-11-16 18:15:46.68,5,0\n", "row 2, GeneratedTokens='0'"),
        (PLAIN + "0,\0,2\n", "row 2: binary: must be text"),
        (b"PK\x03\x04\x00\x00\xff\xfe", "row 1: binary: must be text"),
        (PLAIN.encode() + b"0,5,2\n0,\xe9,2\n", "row 3: must be UTF-8 text"),
        (PLAIN + "0,5," + "1" * 100_000 + "\n", "row 2: longer than 65536 bytes"),
        ("x" * 100_000, "row 1: longer than 65536 bytes"),
        ((PLAIN + "0,5,2\n").replace("\n", "\r"), "row 1: "),
        (PLAIN + '0,"5,2\n' + "1,5,2\n" * 40_000, "row 2: "),
    ],
)
def test_what_is_bad_in_a_trace_is_named_by_row_and_column(tmp_path, content, message):
    with pytest.raises(TraceError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(
        ("trace.csv: " + message, "trace.csv, " + message)
    )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"nowhere\.csv: cannot be read: No such file"):
        Workload.from_csv(tmp_path / "nowhere.csv")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        Workload.from_csv(tmp_path)


def test_the_azure_chat_trace_is_served_to_the_last_request(data):
    work = Workload.from_csv(data / "azure-2023" / "AzureLLMInferenceTrace_conv.csv")
    assert len(work) == 19_366
    assert work.arrival_time[0] == 0.0
    config = SimulationConfig.from_preset(
        "llama-2-70b-dgx-h100",
        server="static",
        batch_timeout=0,
        batch_size=64,
        warmup_requests=0,
    )
    runner = SimulationRunner(config, work)
    metrics = runner.run()
    assert metrics["total_requests"] == 19_366
    table = runner.requests
    assert len(table) == 19_366
    assert np.isfinite(table.to_numpy()).all()
    assert (
        metrics["total_tokens"] == work.prompt_length.sum() + work.output_length.sum()
    )


def test_the_azure_code_trace_can_be_scaled_and_written(data, tmp_path):
    work = Workload.from_csv(data / "azure-2023" / "AzureLLMInferenceTrace_code.csv")
    half = work.scaled(0.5)
    half.to_csv(tmp_path / "half.csv")
    again = Workload.from_csv(tmp_path / "half.csv")
    assert_same(again, half)
    assert again.arrival_time[-1] == pytest.approx(2 * work.arrival_time[-1])
