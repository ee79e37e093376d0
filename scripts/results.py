"""Write the tables of docs/performance.md from the newest benchmark runs."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPTS, RESULTS = Path("benchmarks"), Path("benchmarks/results")
PAGE = Path("docs/performance.md")
BEGIN, END = "<!-- begin: make results -->\n", "<!-- end: make results -->\n"
# Order of the benchmarks in the page; unlisted ones follow by name.
ORDER = ("cold_start", "warm_request", "peers", "register", "many_models", "memory")
NAMES = {  # display names of contenders
    "ours": "**Mayfly's infer function**",
    "ours, AWS's client": "the same under AWS's runtime client",
    "empty": "our runtime client, a handler that does nothing",
    "empty, AWS's client": "AWS's runtime client, a handler that does nothing",
    "stack": "the local stack: gateway, moto, environments",
}
ENCODINGS = {"json": "JSON", "binary": "binary"}
Run = Mapping[str, Any]  # one line of a results file, see benchmarks/harness/measure.py
Rows = list[Sequence[str]]


def newest(folder: Path = RESULTS) -> list[Run]:
    """Return the newest run of each benchmark, in the page's order."""
    runs = [
        json.loads(path.read_text().splitlines()[-1]) for path in sorted(folder.glob("*.jsonl"))
    ]
    place = {name: index for index, name in enumerate(ORDER)}
    return sorted(runs, key=lambda run: (place.get(run["benchmark"], len(ORDER)), run["benchmark"]))


def cold_start(results: Sequence[Run]) -> str:
    """Summarize Mayfly's cold-start times with S3-like storage in a sentence."""
    rows = [row for row in results if (row["contender"], row["storage"]) == ("ours", "s3-like")]
    return "; ".join(
        f"{row['model']} {row['median']:.0f} ms: {times(row['over_reference'])} of ONNX Runtime"
        f" with a local file, {times(row['over_usual'])} of the usual handler"
        for row in rows
    )


def warm_request(results: Sequence[Run]) -> str:
    """Summarize the CPU time of Mayfly's warm requests."""
    rows = [row for row in results if row["contender"] == "ours"]
    parts = []
    for row in rows:
        encoding = f"{ENCODINGS[row['encoding']]}, {row['rows']} row(s): {row['median']:.0f} µs"
        over_naive = f", {times(row['over_naive'])} of the hand-made" if "over_naive" in row else ""
        parts.append(f"{encoding}, {times(row['over_bare'])} of the bare run{over_naive}")
    return "; ".join(parts)


def peers(results: Sequence[Run]) -> str:
    """Summarize Mayfly's CPU time per request relative to each compared server."""
    ratios = [
        f"{times(over['cpu_us_1'])} and {times(over['cpu_us_8'])} {row['contender']}'s"
        for row in results
        if (over := row.get("ours_over"))
    ]
    return f"CPU a request, at 1 and 8 clients: {', '.join(ratios)}"


def register(results: Sequence[Run]) -> str:
    """Summarize the time to register a model, from event to READY."""
    rows = [row for row in results if row["what"] == "ours"]
    ratios = "; ".join(
        f"{row['model']} {row['median']:.0f} ms, {times(row['ratio'])}" for row in rows
    )
    return f"{ratios} of download, session and one run"


def many_models(results: Sequence[Run]) -> str:
    """Summarize cache hits, latency and peak memory by number of models."""
    return "; ".join(
        f"{row['models']} models: {row['hit_rate']:.1%} hits, hit {row['hit']['p50_ms']:.1f} ms,"
        f" miss {row['miss']['p50_ms'] or 0:.0f} ms, peak {row['memory_mb']['peak']} MB"
        for row in results
    )


def python_client(results: Sequence[Run]) -> str:
    """Summarize what a call of Mayfly's Python client takes beside tritonclient's."""
    rows = [row for row in results if str(row["contender"]).startswith("mayfly")]
    return "; ".join(
        f"{row['contender']}, {row['rows']} row(s): {times(row['over_triton'])} of tritonclient's "
        f"time, {times(row['cpu_over_triton'])} of its CPU"
        for row in rows
    )


def control_plane(results: Sequence[Run]) -> str:
    """Summarize calls and time of control-plane requests over a small registry."""
    largest = max(row["models"] for row in results)
    return f"with {largest} models: " + "; ".join(
        f"{row['what']} {row['calls_max']:g} requests to DynamoDB,"
        f" {times(row['over_smallest'])} the time of {min(r['models'] for r in results)} models"
        for row in results
        if row["models"] == largest
    )


def generate(results: Sequence[Run]) -> str:
    """Summarize the speed of text generation over onnxruntime-genai and memory's bandwidth."""
    parts = []
    for row in results:
        label, name = str(row["what"]), row["model"]
        if "speed_over_genai" in row:
            measure, speed = label.split(",")[0], row["speed_over_genai"]
            if measure.startswith("cold start"):  # a time, once for each environment
                ratio = f"{1 / speed['median']:.2f}x onnxruntime-genai's time"
            else:
                ratio = f"{times(speed)} onnxruntime-genai's speed"
            parts.append(f"{name}: {measure} at {ratio}")
        elif label.startswith(("speed over", "second turn")):
            parts.append(f"{name}: {label} {times(row)}")
        elif "over_single" in row:
            parts.append(
                f"{name}: texts in batches at {times(row['over_single'])} the single speed"
            )
    return "; ".join(parts)


def memory(results: Sequence[Run]) -> str:
    """Summarize the peak memory of a loaded model over an idle process."""
    rows = [row for row in results if row["contender"] == "ours"]
    return "over an idle process: " + ", ".join(
        f"{row['model']} {row['over_idle']['median']:.0f} MB (weights {row['weights_mb']:.0f})"
        for row in rows
    )


def times(ratio: Mapping[str, float]) -> str:
    """Format a measured ratio's median, with an `x` after it.

    >>> times({"median": 0.4512, "p90": 0.5})
    '0.45x'
    """
    return f"{ratio['median']:.2f}x"


SUMMARIES: Mapping[str, Callable[[Sequence[Run]], str]] = {
    summary.__name__: summary
    for summary in (
        cold_start,
        warm_request,
        peers,
        register,
        many_models,
        control_plane,
        memory,
        python_client,
        generate,
    )
}


def subject(script: Path) -> str:
    """Return the first line of a benchmark's docstring, without the full stop."""
    text = (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n")[0]
    return text.split(". ")[0].removesuffix(".")


def overview(runs: Iterable[Run], scripts: Path = SCRIPTS) -> Rows:
    """Return a row for each benchmark: its command, subject and result."""
    rows: Rows = [("`python -m …`", "Measures", "Result")]
    for run in runs:
        name = run["benchmark"]
        summary = SUMMARIES.get(name)
        link = f"[{name}.jsonl](../benchmarks/results/{name}.jsonl)"
        result = summary(run["results"]) if summary else link
        script = scripts / f"{name}.py"
        if not script.exists():  # a package
            script = scripts / name / "__main__.py"
        rows.append((f"`benchmarks.{name}`", subject(script), result))
    return rows


def contenders(results: Sequence[Run]) -> Rows:
    """Return a table row for each server compared in benchmark `peers`."""
    columns = {
        "cold start, ms": ("cold_start_ms", 0),
        "CPU a request, µs": ("cpu_us_1", 0),
        "with 8 clients": ("cpu_us_8", 0),
        "memory, MB": ("memory_mb", 0),
        "p50, ms": ("p50_ms_1", 2),
        "requests/s": ("rps_1", 0),
        "requests/s, 8 clients": ("rps_8", 0),
    }
    rows: Rows = [("", *columns)]
    for entry in results:
        label = str(NAMES.get(entry["contender"], entry["contender"]))
        if "missing" in entry:
            rows.append((label, "not measured", *[""] * (len(columns) - 1)))
        elif all(name in entry for name, _ in columns.values()):
            cells = [f"{entry[name]['median']:.{digits}f}" for name, digits in columns.values()]
            versions = f" ({entry['versions']})" if "versions" in entry else ""
            rows.append((label + versions, *cells))
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table; the first row is the header."""
    head, *body = ("| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


def origin(runs: Sequence[Run]) -> str:
    """Describe the machines, versions and dates of the benchmark runs."""
    machines = {
        "{cores} cores of {cpu} ({architecture})".format_map(run["machine"]) for run in runs
    }
    versions = {
        "Python {python}, onnxruntime {onnxruntime}".format_map(run["versions"]) for run in runs
    }
    days = sorted({run["date"][:10] for run in runs})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"Medians, {'; '.join(sorted(machines))}, {'; '.join(sorted(versions))}, {when}.\n"


def block(runs: Sequence[Run]) -> str:
    """Return the generated part of docs/performance.md: origin, overview, peers."""
    tables = [contenders(run["results"]) for run in runs if run["benchmark"] == "peers"]
    return "\n".join([origin(runs), markdown(overview(runs)), *map(markdown, tables)])


def with_results(page: str, runs: Sequence[Run]) -> str:
    """Return docs/performance.md's text with its generated part replaced."""
    between = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.DOTALL)
    return between.sub(lambda match: f"{match[1]}\n{block(runs)}\n{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_results(PAGE.read_text(), newest()))
