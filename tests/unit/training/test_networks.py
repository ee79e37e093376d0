"""Networks against the same computation written in another way."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from torch import nn

from training import networks

pytestmark = pytest.mark.train


def test_an_encoder_does_not_see_padding() -> None:
    torch.manual_seed(0)
    encoder = networks.Encoder(20, 16, 3, width=8, heads=2).eval()
    words = torch.tensor([[2, 5, 9, 4]])

    with torch.no_grad():
        plain, padded = (
            encoder(words),
            encoder(torch.cat([words, torch.zeros(1, 7, dtype=torch.int64)], 1)),
        )
        turned = encoder(words.flip(1))

    torch.testing.assert_close(plain, padded)
    assert (plain - turned).abs().max() > 1e-3  # order counts


def test_a_word_of_several_pieces_is_their_sum() -> None:
    torch.manual_seed(0)
    encoder = networks.Encoder(20, 16, 3, width=8, heads=2).eval()
    single = torch.tensor([[2, 5, 7, 0]])
    pieces = torch.tensor([[[2, 0], [5, 0], [7, 0], [0, 0]]])

    torch.testing.assert_close(encoder(pieces), encoder(single))
    assert not torch.allclose(
        encoder(torch.tensor([[[2, 0], [5, 9], [7, 0], [0, 0]]])), encoder(single)
    )


class Scores(nn.Module):  # type: ignore[misc]
    """Scores of six items that depend on both inputs."""

    def forward(self, history: torch.Tensor, ratings: torch.Tensor) -> torch.Tensor:
        return torch.arange(6.0) * ratings.sum(1, keepdim=True) + history.sum(1, keepdim=True)


def test_a_function_after_a_network_leaves_its_argument_names() -> None:
    wrapped = networks.After(Scores(), networks.best(2))

    assert list(inspect.signature(wrapped.forward).parameters) == ["history", "ratings"]
    items, scores = wrapped(torch.tensor([[1, 4]]), torch.tensor([[5.0, 2.0]]))
    assert items.tolist() == [[5, 4]]
    assert scores.tolist() == [[40.0, 33.0]]
