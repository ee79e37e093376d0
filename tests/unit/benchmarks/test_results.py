"""Tables of docs/performance.md: newest runs, one row each, nothing else changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import results

MACHINE = {"cpu": "EPYC", "architecture": "x86_64", "cores": 2, "load": 1.0}
VERSIONS = {"python": "3.13.1", "onnxruntime": "1.31.1"}
PARTS = ("cold_start_ms", "cpu_us_1", "cpu_us_8", "memory_mb", "p50_ms_1", "rps_1", "rps_8")


def run(
    benchmark: str, *entries: dict[str, Any], date: str = "2026-11-22T10:00:00Z"
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "date": date,
        "machine": MACHINE,
        "versions": VERSIONS,
        "results": list(entries),
    }


def spread(median: float) -> dict[str, float]:
    return {"median": median, "p90": 2 * median}


def test_the_page_has_the_newest_results() -> None:
    page = results.PAGE.read_text()

    assert results.BEGIN in page
    assert results.with_results(page, results.newest()) == page, "run `make results`"


def test_the_last_line_of_a_file_is_the_newest(tmp_path: Path) -> None:
    for name, dates in {"zebra": ["1"], "warm_request": ["1", "2"], "cold_start": ["3"]}.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(run(name, date=date)) + "\n" for date in dates)
        )

    newest = [(run["benchmark"], run["date"]) for run in results.newest(tmp_path)]
    assert newest == [("cold_start", "3"), ("warm_request", "2"), ("zebra", "1")]


@pytest.mark.parametrize(
    ("benchmark", "entry", "summary"),
    [
        (
            "cold_start",
            {"model": "tiny", "storage": "s3-like", "contender": "ours", **spread(199.6)}
            | {"over_reference": spread(0.9), "over_usual": spread(0.333)},
            "tiny 200 ms: 0.90x of ONNX Runtime with a local file, 0.33x of the usual handler",
        ),
        (
            "warm_request",
            {"encoding": "json", "rows": 1, "contender": "ours", **spread(51.4)}
            | {"over_bare": spread(4), "over_naive": spread(0.5)},
            "JSON, 1 row(s): 51 µs, 4.00x of the bare run, 0.50x of the hand-made",
        ),
        (
            "peers",
            {"contender": "flask", "ours_over": {f"cpu_us_{n}": spread(n / 2) for n in (1, 8)}},
            "CPU a request, at 1 and 8 clients: 0.50x and 4.00x flask's",
        ),
        (
            "register",
            {"model": "tiny", "what": "ours", "ratio": spread(3), **spread(100)},
            "tiny 100 ms, 3.00x of download, session and one run",
        ),
        (
            "python_client",
            {"contender": "mayfly-async", "rows": 1, **spread(3)}
            | {"over_triton": spread(0.8), "cpu_over_triton": spread(0.625)},
            "mayfly-async, 1 row(s): 0.80x of tritonclient's time, 0.62x of its CPU",
        ),
        (
            "generate",
            {"model": "tiny", "what": "decode, CPU ms a token", "contender": "ours", **spread(2)}
            | {"speed_over_genai": spread(0.96)},
            "tiny: decode at 0.96x onnxruntime-genai's speed",
        ),
        (
            "generate",
            {"model": "tiny", "what": "cold start to the first token, ms", **spread(2)}
            | {"contender": "ours", "speed_over_genai": spread(0.8)},
            "tiny: cold start to the first token at 1.25x onnxruntime-genai's time",
        ),
        ("new", {"n": 1}, "[new.jsonl](../benchmarks/results/new.jsonl)"),
    ],
)
def test_a_benchmark_has_one_row(
    benchmark: str, entry: dict[str, Any], summary: str, tmp_path: Path
) -> None:
    (tmp_path / f"{benchmark}.py").write_text('"""Speed: time of a run. Method."""')

    [heading, row] = results.overview([run(benchmark, entry)], tmp_path)

    assert list(heading) == ["`python -m …`", "Measures", "Result"]
    assert list(row) == [f"`benchmarks.{benchmark}`", "Speed: time of a run", summary]


def test_each_peer_has_a_row_also_if_it_was_not_measured() -> None:
    whole = {part: spread(10) for part in PARTS}
    entries = [
        {"contender": "ours", **whole},
        {"contender": "flask", "versions": "flask 3.1.3", **whole},
        {"contender": "ours, unthrottled", "cold_start_ms": spread(5)},
        {"contender": "bentoml", "missing": "no environment"},
    ]

    labels = [row[:2] for row in results.contenders(entries)[1:]]

    assert labels == [
        (results.NAMES["ours"], "10"),
        ("flask (flask 3.1.3)", "10"),
        ("bentoml", "not measured"),
    ]


def test_tables_name_machine_versions_and_dates() -> None:
    text = results.block([run("cold_start"), run("warm_request", date="2026-11-24T10:00:00Z")])

    origin = (
        "2 cores of EPYC (x86_64), Python 3.13.1, onnxruntime 1.31.1, 2026-11-22 to 2026-11-24."
    )
    assert origin in text
    assert text.count("|---") == 3


def test_text_outside_the_generated_block_stays() -> None:
    page = f"# Mayfly\n{results.BEGIN}stale\n{results.END}The end\n"

    written = results.with_results(page, [run("cold_start")])

    assert written.startswith(f"# Mayfly\n{results.BEGIN}")
    assert written.endswith(f"{results.END}The end\n")
    assert "stale" not in written
    assert results.with_results(written, [run("cold_start")]) == written
