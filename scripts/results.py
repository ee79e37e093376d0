"""Writes the README's benchmark tables from the newest run of each file in benchmarks/results/. `make results`"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.tree import sentence

SCRIPTS, RESULTS, README = Path("benchmarks"), Path("benchmarks/results"), Path("README.md")
BEGIN, END = "<!-- by `make results` -->\n", "<!-- until here -->\n"
ORDER = (
    "cold_start",
    "warm_request",
    "peers",
    "register",
    "many_models",
    "memory",
)  # others come after them, by name
NAMES = {  # of contenders, in the README
    "ours": "**the infer function**, under AWS's runtime client",
    "empty": "AWS's runtime client, a handler that does nothing",
    "stack": "the local stack: gateway, moto, environments",
}
ENCODINGS = {"json": "JSON", "binary": "binary"}
Line = Mapping[str, Any]  # one run, as benchmarks/harness/measure.py keeps it


def newest(folder: Path = RESULTS) -> list[Line]:
    """The last run of each benchmark, in the README's order."""
    lines = [
        json.loads(path.read_text().splitlines()[-1]) for path in sorted(folder.glob("*.jsonl"))
    ]
    place = {name: at for at, name in enumerate(ORDER)}
    return sorted(
        lines, key=lambda line: (place.get(line["benchmark"], len(ORDER)), line["benchmark"])
    )


def cold_start(results: Sequence[Line]) -> str:
    found = [
        entry for entry in results if entry["contender"] == "ours" and entry["storage"] == "s3-like"
    ]
    return "; ".join(
        f"{entry['model']} {entry['median']:.0f} ms, {times(entry['over_reference'])} what ONNX Runtime alone takes "
        f"with a local file, {times(entry['over_usual'])} what the usual handler takes"
        for entry in found
    )


def warm_request(results: Sequence[Line]) -> str:
    found = [entry for entry in results if entry["contender"] == "ours" and entry["rows"] == 1]
    return ", ".join(
        f"{ENCODINGS[entry['encoding']]} {entry['minus_bare']['median']:.0f} µs" for entry in found
    )


def peers(results: Sequence[Line]) -> str:
    ratios = {
        entry["contender"]: entry["ours_over"]["cpu_us_1"]
        for entry in results
        if "ours_over" in entry
    }
    return "CPU of ours: " + ", ".join(f"{times(ratio)} {name}'s" for name, ratio in ratios.items())


def register(results: Sequence[Line]) -> str:
    found = [entry for entry in results if entry["what"] == "ours"]
    ratios = "; ".join(
        f"{entry['model']} {entry['median']:.0f} ms, {times(entry['ratio'])}" for entry in found
    )
    return f"{ratios} what download, session and one run take"


def many_models(results: Sequence[Line]) -> str:
    return "; ".join(
        f"of {entry['models']} models: {entry['hit_rate']:.1%} hits, hit {entry['hit']['p50_ms']:.1f} ms, "
        f"miss {entry['miss']['p50_ms'] or 0:.0f} ms, peak {entry['memory_mb']['peak']} MB"
        for entry in results
    )


def memory(results: Sequence[Line]) -> str:
    found = [entry for entry in results if entry["contender"] == "ours"]
    return "over an idle process: " + ", ".join(
        f"{entry['model']} {entry['over_idle']['median']:.0f} MB (weights {entry['weights_mb']:.0f})"
        for entry in found
    )


def times(ratio: Mapping[str, float]) -> str:
    """
    >>> times({"median": 0.4512, "p90": 0.5})
    '0.45x'
    """
    return f"{ratio['median']:.2f}x"


SUMMARIES: Mapping[str, Callable[[Sequence[Line]], str]] = {
    one.__name__: one for one in (cold_start, warm_request, peers, register, many_models, memory)
}


def overview(lines: Iterable[Line], scripts: Path = SCRIPTS) -> list[Sequence[str]]:
    """A row a benchmark: what it asks, which is the first line of its script, and what it found."""
    rows: list[Sequence[str]] = [("`python -m …`", "asks", "found")]
    for line in lines:
        name = line["benchmark"]
        summary = SUMMARIES.get(name)
        kept = f"[{name}.jsonl](benchmarks/results/{name}.jsonl)"
        found = summary(line["results"]) if summary else kept
        rows.append((f"`benchmarks.{name}`", sentence(scripts / f"{name}.py"), found))
    return rows


def contenders(results: Sequence[Line]) -> list[Sequence[str]]:
    """The peers, a row each."""
    columns = {
        "cold start, ms": ("cold_start_ms", 0),
        "CPU a request, µs": ("cpu_us_1", 0),
        "memory, MB": ("memory_mb", 0),
        "p50, ms": ("p50_ms_1", 2),
        "requests/s": ("rps_1", 0),
        "requests/s, 8 clients": ("rps_8", 0),
    }
    rows: list[Sequence[str]] = [("", *columns)]
    for entry in results:
        if "missing" in entry:
            rows.append((entry["contender"], "not measured", *[""] * (len(columns) - 1)))
        elif all(name in entry for name, _ in columns.values()):
            cells = [f"{entry[name]['median']:.{digits}f}" for name, digits in columns.values()]
            label = str(NAMES.get(entry["contender"], entry["contender"]))
            rows.append(
                (f"{label} ({entry['versions']})" if "versions" in entry else label, *cells)
            )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = ("| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


def origin(lines: Sequence[Line]) -> str:
    """On what, with what and when the runs were made."""
    machines = {
        f"{one['cores']} cores of {one['cpu']} ({one['architecture']})"
        for one in (line["machine"] for line in lines)
    }
    versions = {
        f"Python {one['python']}, onnxruntime {one['onnxruntime']}"
        for one in (line["versions"] for line in lines)
    }
    days = sorted({line["date"][:10] for line in lines})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"Medians, {'; '.join(sorted(machines))}, {'; '.join(sorted(versions))}, {when}.\n"


def block(lines: Sequence[Line]) -> str:
    parts = [origin(lines), markdown(overview(lines))]
    parts += [
        markdown(contenders(line["results"])) for line in lines if line["benchmark"] == "peers"
    ]
    return "\n".join(parts)


def with_results(readme: str, lines: Sequence[Line]) -> str:
    """The text of the README with the tables of `lines`."""
    between = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.DOTALL)
    return between.sub(lambda found: f"{found[1]}\n{block(lines)}\n{found[2]}", readme)


if __name__ == "__main__":
    README.write_text(with_results(README.read_text(), newest()))
