"""Model servers for comparison (Flask, FastAPI, BentoML, MLServer, LitServe): start commands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.children.load import HOST
from benchmarks.harness.child import CHILDREN
from benchmarks.harness.measure import ROOT


@dataclass(frozen=True, slots=True)
class Peer:
    """Model server to compare with: packages, start command, path, environment variables.

    {port}, {port1}, {port2} and {folder} in `command` and `variables` are filled in.
    """

    name: str
    packages: tuple[str, ...]  # packages whose versions are recorded
    command: tuple[str, ...]  # the first word is a program of the peer's virtual environment
    path: str = "/predict"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Folder of the peer's server.py."""
        return CHILDREN / "peers" / self.name

    @property
    def environment(self) -> Path:
        """Folder of the peer's virtual environment."""
        return ROOT / f".venv-peer-{self.name}"

    def versions(self) -> str:
        """Return installed package versions, such as "flask 3.1.3, gunicorn 27.0.1"."""
        [site] = self.environment.glob("lib/python3*/site-packages")
        versions = {
            distribution.metadata["Name"].lower(): distribution.version
            for distribution in metadata.distributions(path=[str(site)])
        }
        return ", ".join(f"{name} {versions[name]}" for name in self.packages)


FLASK = Peer(
    "flask",
    packages=("flask", "gunicorn"),
    command=(
        *("gunicorn", "--workers", "1", "--bind", f"{HOST}:{{port}}"),
        *("--chdir", "{folder}", "server:app"),
    ),
)
FASTAPI = Peer(
    "fastapi",
    packages=("fastapi", "uvicorn"),
    command=("uvicorn", "--host", HOST, "--port", "{port}", "--app-dir", "{folder}", "server:app"),
)
BENTOML = Peer(
    "bentoml",
    packages=("bentoml",),
    command=(
        *("bentoml", "serve", "server:Predictor", "--working-dir", "{folder}"),
        *("--host", HOST, "--port", "{port}"),
    ),
    variables={"BENTOML_DO_NOT_TRACK": "true"},
)
MLSERVER = Peer(
    "mlserver",
    packages=("mlserver",),
    command=("mlserver", "start", "{folder}"),
    path="/v2/models/tiny/infer",
    variables={
        "MLSERVER_HOST": HOST,
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_GRPC_PORT": "{port1}",
        "MLSERVER_METRICS_PORT": "{port2}",
        "MLSERVER_PARALLEL_WORKERS": "0",
    },
)
LITSERVE = Peer(
    "litserve", packages=("litserve",), command=("python", "{folder}/server.py", "{port}")
)
PEERS = {peer.name: peer for peer in (FLASK, FASTAPI, BENTOML, MLSERVER, LITSERVE)}
