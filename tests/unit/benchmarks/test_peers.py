"""Comparison with other model servers: its peers, arithmetic, goals and tables."""

import json
import re
import tomllib

import pytest

from benchmarks import peers
from benchmarks.harness.measure import ROOT
from benchmarks.harness.peer_servers import Peer
from benchmarks.harness.server_runs import parse_prediction
from benchmarks.harness.usage import resident_bytes


def metrics(cold: float, cpu: float, memory: float) -> dict[str, float]:
    values = {"cold_start_ms": cold, "memory_mb": memory}
    for clients in peers.CLIENTS:
        values |= {
            f"p50_ms_{clients}": 1.0,
            f"p99_ms_{clients}": 2.0,
            f"rps_{clients}": 1000.0,
            f"cpu_us_{clients}": cpu,
        }
    return values


METRICS = {
    "ours": [metrics(200, 100, 60), metrics(220, 120, 60)],
    "fastapi": [metrics(400, 250, 90), metrics(400, 240, 90)],
    "flask": [metrics(210, 90, 80), metrics(200, 150, 80)],
    "ours, unthrottled": [{"cold_start_ms": 150.0}, {"cold_start_ms": 160.0}],
    "empty": [metrics(100, 70, 20), metrics(100, 70, 20)],
    "empty, AWS's client": [metrics(100, 140, 20), metrics(100, 700, 20)],
}
ENTRIES = peers.results(METRICS, {"bentoml": "no environment"}, {"fastapi": "fastapi 1.0"})


def test_every_peer_has_a_server_and_an_environment_of_its_own() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    [made] = re.findall(r"^PEERS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    servers = (ROOT / "benchmarks/children/peers").glob("*/server.py")

    assert set(peers.PEERS) == {path.parent.name for path in servers} == set(made.split())
    peer_groups = {name for name in groups if name.startswith("peer-")}
    assert {f"peer-{name}" for name in peers.PEERS} == peer_groups
    assert all((ROOT / f"constraints/peer-{name}.txt").is_file() for name in peers.PEERS)


def constraints(name: str) -> dict[str, str]:
    text = (ROOT / f"constraints/{name}.txt").read_text()
    return dict(re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("peer", peers.PEERS.values(), ids=lambda peer: peer.name)
def test_every_peer_has_the_runtime_of_the_function(peer: Peer) -> None:
    main, pinned = constraints("main"), constraints(f"peer-{peer.name}")

    assert pinned["onnxruntime"] == main["onnxruntime"]
    assert pinned["numpy"] == main["numpy"]
    assert set(peer.packages) <= set(pinned)


@pytest.mark.parametrize("peer", peers.PEERS.values(), ids=lambda peer: peer.name)
def test_peers_listen_on_loopback_only_and_have_one_thread(peer: Peer) -> None:
    server = (peer.folder / "server.py").read_text()
    addresses = " ".join((*peer.command, *peer.variables.values(), server))

    assert "127.0.0.1" in addresses
    assert "0.0.0.0" not in addresses
    assert "intra_op_num_threads = 1" in server


def test_arguments_choose_peers_rounds_and_requests() -> None:
    words = ["--rounds", "2", "--requests", "50", "--peers", "flask,fastapi", "--no-save"]
    chosen = peers.arguments(words)

    assert (chosen.rounds, chosen.requests, chosen.peers) == (2, 50, ["flask", "fastapi"])
    assert not chosen.save
    assert peers.arguments([]).peers == list(peers.PEERS)


@pytest.mark.parametrize("words", [["--peers", "torchserve"], ["--requests", "0"]])
def test_wrong_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.arguments(words)

    assert words[0] in capsys.readouterr().err


def test_ours_is_compared_with_each_peer_in_the_same_round() -> None:
    entries = {entry["contender"]: entry for entry in ENTRIES}
    cold_start = entries["flask"]["ours_over"]["cold_start_ms"]

    assert entries["fastapi"]["ours_over"]["cpu_us_1"] == {"median": 0.45, "p90": 0.49}
    assert cold_start["median"] == pytest.approx(1.026, abs=0.001)
    assert entries["fastapi"]["versions"] == "fastapi 1.0"
    compared = {name for name, entry in entries.items() if "ours_over" in entry}
    assert not {"ours", "ours, unthrottled", "empty"} & compared


def test_a_peer_that_could_not_be_measured_is_listed() -> None:
    assert ENTRIES[-1] == {"contender": "bentoml", "missing": "no environment"}
    assert "bentoml was not measured: no environment" in peers.table(ENTRIES)


def test_the_table_has_one_line_for_each_contender() -> None:
    lines = peers.table(ENTRIES).splitlines()

    assert len(lines) == 1 + len(METRICS) + 1
    assert lines[2].split()[0] == "fastapi"
    assert lines[2].split()[-2:] == ["0.45", "0.49"]


def test_goals_name_the_peers_that_are_ahead() -> None:
    assert peers.goals(ENTRIES) == [
        "CPU over fastapi's: 0.45, goal 0.5: met",
        "of our CPU, 70 µs of 110 are the runtime client's",
        "CPU of empty over empty, AWS's client: 0.30",
        "cold start: behind flask (1.03)",
        "CPU: ahead of fastapi, flask",
        "memory: ahead of fastapi, flask",
    ]


def test_a_missed_goal_is_called_missed() -> None:
    equal = {"ours": [metrics(200, 200, 60)], "fastapi": [metrics(400, 200, 90)]}

    [goal, *_] = peers.goals(peers.results(equal, {}, {}))
    assert goal == "CPU over fastapi's: 1.00, goal 0.5: missed"


def failing(_: int) -> dict[str, float]:
    raise RuntimeError("ended with 1: no module")


def test_a_peer_that_fails_to_start_is_missing_with_its_reason() -> None:
    missing: dict[str, str] = {}
    working = peers.warmed_up({"flask": failing, "empty": lambda count: {}}, 8, missing)

    assert list(working) == ["empty"]
    assert missing == {"flask": "ended with 1: no module"}


def test_a_failure_of_ours_ends_the_comparison() -> None:
    with pytest.raises(RuntimeError, match="no module"):
        peers.warmed_up({"ours": failing}, 8, {})


@pytest.mark.parametrize(
    "answer",
    [
        {"prediction": [[1, 2.5]]},
        [[1, 2.5]],
        {"outputs": [{"name": "y", "shape": [1, 2], "data": [1, 2.5]}]},
    ],
    ids=["predict", "bentoml", "open inference protocol"],
)
def test_a_prediction_is_read_from_every_peers_answer(answer: object) -> None:
    assert parse_prediction(json.dumps(answer).encode()).tolist() == [1, 2.5]


def test_pages_that_a_family_shares_count_once() -> None:
    library = "7f00-7f10 r-xp 00001000 fe:00 1234 /lib/x.so\nRss: {} kB\nPss: 1 kB\n"
    heap = "5500-5600 rw-p 00000000 00:00 0 [heap]\nRss: 100 kB\nPss: {} kB\nVmFlags: rd wr\n"

    parent = library.format(300) + heap.format(60)
    child = library.format(200) + heap.format(40)

    assert resident_bytes(iter([parent, child])) == 400 * 1024
    assert resident_bytes(iter([])) == 0
