"""Small networks on scikit-learn's digits, trained and exported in seconds."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from sklearn.datasets import load_digits
from torch import nn

from training.export import graphs, torch_exporter
from training.fitting import losses

X, Y = load_digits(return_X_y=True)
IMAGES, LABELS = (
    torch.from_numpy(X.astype(np.float32) / 16).reshape(-1, 1, 8, 8),
    torch.from_numpy(Y),
)
TRAIN, TEST = slice(0, 1300), slice(1300, None)
CALIBRATION = [{"x": IMAGES[start : start + 50].numpy()} for start in range(0, 200, 50)]
Network = Any


def fit(
    network: Network,
    steps: int = 150,
    loss: losses.Loss = losses.cross_entropy,
    rows: slice = TRAIN,
) -> Network:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, (IMAGES[rows],), LABELS[rows]).backward()
        optimizer.step()
    return network.eval()


def perceptron(hidden: int = 64) -> Network:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def convolutional(first: int = 8, second: int = 16) -> Network:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * 4, 10))  # fmt: skip


def right(network: Network) -> float:
    with torch.no_grad():
        return float((network(IMAGES[TEST]).argmax(1) == LABELS[TEST]).float().mean())


def graph_of(network: Network, rung: Any = torch_exporter.torchscript) -> Any:
    spec = torch_exporter.Spec(
        network,
        {"x": {0: "batch"}},
        ["y"],
        {"batch": torch_exporter.Dim()},
        lambda sizes: (IMAGES[: sizes["batch"]],),
    )
    return torch_exporter.export(spec, [rung])


def accuracy(graph: Any) -> float:
    answers = graphs.open_session(graph).run(None, {"x": IMAGES[TEST].numpy()})[0]
    return float(np.mean(answers.argmax(1) == Y[TEST]))
