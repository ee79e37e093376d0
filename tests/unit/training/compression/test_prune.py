"""Structured pruning of layers in a row: which neurons go, and what stays equal."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.training.compression.small_networks import (
    IMAGES,
    Network,
    convolutional,
    fit,
    graph_of,
    perceptron,
    right,
)
from training.compression import prune
from training.errors import CompressionFailed

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore"),  # the converters' own
]


def operations(network: Network) -> int:
    """Count the multiplications and additions for one image."""
    with FlopCounterMode(display=False) as counter:
        network(IMAGES[:1])
    return counter.get_total_flops()


@pytest.mark.parametrize("network", [perceptron, convolutional])
def test_pruning_halves_hidden_layers_and_training_restores_accuracy(
    network: Callable[[], Network],
) -> None:
    some = slice(0, 600)
    whole = fit(network(), rows=some)
    tuned: list[float] = []

    def tune(smaller: Network) -> None:
        tuned.append(right(smaller.eval()))
        fit(smaller, 100, rows=some)

    half = prune.prune(whole, 0.5, tune, steps=2).eval()

    assert len(tuned) == 2
    assert graph_of(half).ByteSize() < 0.62 * graph_of(whole).ByteSize()
    assert operations(half) < 0.62 * operations(whole)
    assert right(half) > tuned[-1] + 0.01
    assert right(half) >= right(whole) - 0.1
    assert right(whole) > 0.85


def test_the_weakest_neurons_are_removed() -> None:
    """Removing neurons that are not read changes no output."""
    network = perceptron(8)
    with torch.no_grad():
        network[3].weight[:, [1, 6]] = 0
    before = network(IMAGES[:20])

    smaller = prune.prune(network, 0.25, lambda _: None)

    assert smaller[1].out_features == smaller[3].in_features == 6
    torch.testing.assert_close(smaller(IMAGES[:20]), before)


def test_removed_channels_lose_their_norms_and_flattened_inputs() -> None:
    network = convolutional().eval()
    with torch.no_grad():
        network[1].running_mean.uniform_(-0.1, 0.1)
        network[1].weight[[0, 5]] = 0
        network[1].bias[[0, 5]] = 0
        network[8].weight.view(10, 16, 4)[:, [3, 9, 10, 11]] = 0
    before = network(IMAGES[:20])

    smaller = prune.prune(network, 0.25, lambda _: None).eval()

    assert (smaller[0].out_channels, smaller[1].num_features, smaller[4].in_channels) == (6, 6, 6)
    assert (smaller[4].out_channels, smaller[8].in_features) == (12, 48)
    torch.testing.assert_close(smaller(IMAGES[:20]), before)


def test_the_feed_forward_part_of_an_encoder_shrinks() -> None:
    smaller: Any = prune.prune(nn.TransformerEncoderLayer(16, 2, 32), 0.5, lambda _: None)

    assert (smaller.linear1.out_features, smaller.linear2.in_features) == (16, 16)


def test_zero_weights_do_not_shrink_a_graph() -> None:
    network = perceptron()
    size = graph_of(network).ByteSize()
    weights = network[1].weight
    with torch.no_grad():
        weights[weights.abs() < weights.abs().quantile(0.8)] = 0

    assert (weights == 0).float().mean() > 0.79
    assert graph_of(network).ByteSize() == size


@pytest.mark.parametrize(
    ("network", "share", "why"),
    [(nn.LSTM(4, 4), 0.5, "nothing can be pruned"), (perceptron(), 1.0, "between 0 and 1")],
    ids=["no layers in a row", "everything"],
)
def test_a_model_that_cannot_be_pruned_is_an_error(
    network: Network, share: float, why: str
) -> None:
    with pytest.raises(CompressionFailed, match=why):
        prune.prune(network, share, lambda _: None)
