"""Networks inside recipe files, against the same computation written in another way."""

import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from torch import nn

from training import networks
from training.recipes.churn import Table
from training.recipes.recommender import TwoTowers
from training.recipes.speech import Listener, LogMel
from training.recipes.topics import Evidence

pytestmark = pytest.mark.train
RATE, WINDOW, HOP, BANDS = 8000, 256, 80, 20


def test_log_mel_is_the_fourier_transform_in_bands_of_equal_pitch() -> None:
    audio = np.random.default_rng(0).standard_normal(2000)
    starts = range(0, len(audio) - WINDOW + 1, HOP)
    frames = np.stack([audio[start : start + WINDOW] for start in starts])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    pitches = np.linspace(
        *(2595 * np.log10(1 + hertz / 700) for hertz in (60, RATE / 2)), BANDS + 2
    )
    edges = 700 * (10 ** (pitches / 2595) - 1)
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    weights = np.stack([np.interp(hertz, edges[at : at + 3], [0, 1, 0]) for at in range(BANDS)])
    expected = np.log(weights @ power.T + 1e-6)

    ours = LogMel(RATE, bands=BANDS)(torch.from_numpy(audio[None]).float())[0].numpy()

    assert ours.shape == (BANDS, len(starts))
    np.testing.assert_allclose(ours, expected - expected.mean(), atol=1e-3)


def test_a_listener_takes_a_tenth_of_a_second_and_more() -> None:
    listener = Listener(RATE, 3, bands=8, width=8).eval()

    for samples in (800, 801, 8000):
        assert listener(torch.zeros(2, samples)).shape == (2, 3)


class Same(nn.Module):
    def forward(
        self, numbers: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return numbers, codes


def test_a_table_fills_gaps_with_the_median_marks_and_scales() -> None:
    rows = {
        "numbers": np.array([[1, np.nan], [2, np.nan], [9, np.nan]], np.float32),
        "codes": np.zeros((3, 1), int),
    }
    table = Table(Same(), rows, [4], (5,), 2).eval()
    seen = []
    table.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    table(torch.tensor([[torch.nan, torch.nan], [9.0, 7.0]]), torch.tensor([[1], [3]]))

    scaled, gaps = seen[0][:, :2], seen[0][:, 2:4]
    torch.testing.assert_close(
        scaled[:, 0], (torch.tensor([2.0, 9.0]) - 4) / torch.tensor([1.0, 2.0, 9.0]).std()
    )
    assert scaled.isfinite().all()
    assert gaps.tolist() == [[1, 1], [0, 0]]


def test_two_towers_see_no_order_and_no_padding() -> None:
    torch.manual_seed(0)
    towers = TwoTowers(6, width=4).eval()

    with torch.no_grad():
        plain = towers(torch.tensor([[1, 4]]), torch.tensor([[5.0, 2.0]]))
        other = towers(torch.tensor([[0, 4, 99, 1]]), torch.tensor([[1.0, 2.0, 3.0, 5.0]]))
        disliked = towers(torch.tensor([[1, 4]]), torch.tensor([[1.0, 2.0]]))

    torch.testing.assert_close(plain, other)
    assert (plain < -1e8).tolist() == [[True, True, False, False, True, False, False]]
    assert (plain - disliked).abs().max() > 1e-4


def test_two_towers_with_the_best_items_keep_their_argument_names() -> None:
    wrapped = networks.After(TwoTowers(6, width=4).eval(), networks.best(2))

    assert list(inspect.signature(wrapped.forward).parameters) == ["history", "ratings"]
    items, scores = wrapped(torch.tensor([[1, 4]]), torch.tensor([[5.0, 2.0]]))
    assert items.shape == scores.shape == (1, 2)
    assert not {0, 1, 4} & set(items[0].tolist())


def test_evidence_is_complement_naive_bayes() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.naive_bayes import ComplementNB
    from sklearn.pipeline import make_pipeline

    generator = np.random.default_rng(0)
    target = np.arange(60) % 3
    tokens = [1 + (generator.permutation(20)[:8] + 3 * label) % 24 for label in target]
    numbers = np.array(tokens).reshape(60, 4, 2)
    numbers[generator.random(numbers.shape) < 0.3] = 0
    rows = [[str(token) for token in row.ravel() if token] for row in numbers]
    bayes = make_pipeline(TfidfVectorizer(analyzer=lambda row: row), ComplementNB(alpha=0.4))

    evidence = Evidence(numbers, target)(torch.from_numpy(numbers[:10, ::-1].copy()))

    expected = bayes.fit(rows, target).predict_log_proba(rows[:10])
    np.testing.assert_allclose(evidence.log_softmax(1), expected, atol=1e-5)
    assert not list(Evidence(numbers, target).parameters())
    assert (
        Evidence(numbers, target)(torch.zeros(2, 4, 2, dtype=torch.int64)).tolist()
        == [[0.0] * 3] * 2
    )
