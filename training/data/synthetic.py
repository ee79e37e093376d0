"""Seeded generators of synthetic data: series, ratings, speech and churn tables.

The source string in the manifest has the generator's version and settings. Where the true model
is known, its predictions are the reference "best possible", to which scores can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import BEST_POSSIBLE, Dataset, Examples, digest, split

Array = NDArray[Any]

SEASON = 12  # steps of a season
MEMORY, NOISE = 0.7, 0.3  # autoregression: coefficient, and deviation of its noise


def series(seed: int = 0, *, count: int = 300, windows: int = 5, length: int = 48) -> Dataset:
    """Generate seasonal time series, with the next value as the target.

    The input is `series` (n, length, 1), the target (n,); the split is by series. Level, amplitude,
    harmonics and phase differ by series. An autoregression with coefficient 0.7 and normal noise of
    deviation 0.3 is added; the noise is the lowest possible RMSE. References: best possible, last
    value, seasonal naive.
    """
    generator = np.random.default_rng(seed)
    steps = length + windows * SEASON // 2 + 1
    steady = _seasonal(generator, count, steps)
    rest = _autoregression(generator.normal(0, NOISE, (count, steps)))
    values = steady + rest

    starts = np.arange(windows) * (SEASON // 2)
    shown = np.concatenate([values[:, start : start + length] for start in starts])
    ends = np.repeat(starts + length, count)
    number = np.tile(np.arange(count), windows)
    examples = Examples(
        {"series": shown[:, :, None].astype(np.float32)},
        values[number, ends].astype(np.float32),
        np.array([f"series {n}" for n in number]),
        {
            BEST_POSSIBLE: steady[number, ends] + MEMORY * rest[number, ends - 1],
            "last value": shown[:, -1],
            "seasonal naive": shown[:, -SEASON],
        },
    )
    source = f"synthetic:series@1?seed={seed}&count={count}&windows={windows}&length={length}"
    return split(examples, source=source, sha256=digest(shown, examples.target), by="series")


def _seasonal(generator: np.random.Generator, count: int, steps: int) -> Array:
    """Generate noiseless seasonal series (count, steps): a level and two harmonics."""
    level, height = generator.normal(0, 2, (count, 1)), generator.uniform(0.5, 2, (count, 1))
    phase = generator.uniform(0, 2 * np.pi, (2, count, 1))
    second = generator.uniform(0, 0.5, (count, 1))
    angle = 2 * np.pi * np.arange(steps)[None] / SEASON
    wave = np.sin(angle + phase[0]) + second * np.sin(2 * angle + phase[1])
    values: Array = level + height * wave
    return values


def _autoregression(noise: Array) -> Array:
    rest = np.empty_like(noise)
    rest[:, 0] = noise[:, 0] / math.sqrt(1 - MEMORY**2)  # stationary from the first step
    for step in range(1, noise.shape[1]):
        rest[:, step] = MEMORY * rest[:, step - 1] + noise[:, step]
    return rest


def interactions(
    seed: int = 0,
    *,
    users: int = 1200,
    items: int = 300,
    rank: int = 6,
    history_length: int = 24,
    held_out: int = 6,
) -> Dataset:
    """Generate users' item histories and ratings, with held-out items as target.

    `history` (n, history_length) has item numbers from 1 to `items`, `ratings` (n, history_length)
    their ratings from 1 to 5. Taste has low rank, and a few items are popular with every user.
    Items are drawn with probability exp(popularity + taste), so users rate what they like: ratings
    are missing not at random. A random `held_out` of the drawn items are the target: relevance (n,
    items + 1), 1 for held-out items, -1 for the history and for item 0, the padding. The split is
    by user, so a model is tested on histories of users it has never seen.
    """
    generator = np.random.default_rng(seed)
    tastes, traits = generator.normal(size=(users, rank)), generator.normal(size=(items, rank))
    affinity = tastes @ traits.T / math.sqrt(rank)
    popularity = generator.permutation(-np.log(np.arange(1, items + 1)) * 0.7)
    score = popularity[None] + 2 * affinity
    drawn = np.argsort(-(score + generator.gumbel(size=score.shape)), axis=1)[
        :, : history_length + held_out
    ]
    drawn = generator.permuted(drawn, axis=1)  # without this, favourites would come first
    history, target = drawn[:, :history_length], drawn[:, history_length:]
    opinion = 3 + affinity + generator.normal(0, 0.5, affinity.shape)
    ratings = np.clip(np.rint(np.take_along_axis(opinion, history, axis=1)), 1, 5)

    relevance = np.zeros((users, items + 1), np.int64)
    np.put_along_axis(relevance, target + 1, 1, axis=1)
    np.put_along_axis(relevance, history + 1, -1, axis=1)
    relevance[:, 0] = -1
    best = np.concatenate([np.full((users, 1), -np.inf), score], axis=1)
    examples = Examples(
        {"history": history + 1, "ratings": ratings.astype(np.float32)},
        relevance,
        np.array([f"user {number}" for number in range(users)]),
        {BEST_POSSIBLE: best.astype(np.float32)},
    )
    settings = f"seed={seed}&users={users}&items={items}&rank={rank}&taken={history_length}"
    return split(
        examples,
        source=f"synthetic:interactions@1?{settings}",
        sha256=digest(history, ratings, relevance),
        by="user",
        stratify=False,
    )


RATE = 8000  # sampling rate in Hz
# Formants in Hz of men, after Peterson and Barney (1952); bandwidths are near a tenth of them.
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
WORDS = ("ai", "au", "ea", "ei", "ia", "io", "oi", "ou", "ua", "ui")


def speech(
    seed: int = 7, *, speakers: int = 30, takes: int = 4, seconds: float = 0.4, snr_db: float = 10.0
) -> Dataset:
    """Generate speech-like audio of ten two-vowel words by many speakers.

    The input is `audio` (n, seconds x 8000) in [-1, 1]. A train of glottal pulses passes three
    resonators, whose frequencies glide from the first vowel's formants to the second's. Speakers
    differ in pitch, tract length, habit of each vowel and breath; takes differ in pitch, tempo,
    onset and loudness. White noise is added at `snr_db`.

    The split is by speaker, which is hard: words hardly vary within a speaker. The reference of
    the test part, "mean spectrum", is a logistic regression on the mean spectrum, which cannot
    tell "ai" from "ia".
    """
    generator = np.random.default_rng(seed)
    rows, samples = speakers * len(WORDS) * takes, round(seconds * RATE)
    speaker = np.repeat(np.arange(speakers), len(WORDS) * takes)
    word = np.tile(np.repeat(np.arange(len(WORDS)), takes), speakers)
    first, second = _formants(generator, speakers, speaker, word)

    length = generator.uniform(0.6, 0.95, rows) * samples
    onset = generator.uniform(0, 1, rows) * (samples - length)
    # Position within the word, 0 to 1.
    position = (np.arange(samples)[None] - onset[:, None]) / length[:, None]
    middle, speed = generator.uniform(0.4, 0.6, rows), generator.uniform(6, 12, rows)
    glide = 1 / (1 + np.exp(-speed[:, None] * (position - middle[:, None])))
    envelope = np.sin(np.pi * np.clip(position, 0, 1)) ** 0.5

    sound = _excitation(generator, speakers, speaker, position) * envelope
    for number in range(3):
        frequency = first[:, number, None] + (second - first)[:, number, None] * glide
        sound = _resonate(sound, frequency, 50 + 0.06 * frequency)
    audio = _recorded(generator, sound, snr_db)
    examples = Examples(
        {"audio": (audio / 32768).astype(np.float32)},
        word.astype(np.int64),
        np.array([f"speaker {number}" for number in speaker]),
    )
    settings = f"seed={seed}&speakers={speakers}&takes={takes}&seconds={seconds}&snr_db={snr_db}"
    data = split(
        examples,
        source=f"synthetic:speech-formant@1?{settings}",
        sha256=digest(audio.astype(np.int64)),
        by="speaker",
        labels=WORDS,
    )
    references = {"mean spectrum": _by_spectrum(data)}
    return replace(data, test=replace(data.test, references=references))


def _formants(
    generator: np.random.Generator, speakers: int, speaker: Array, word: Array
) -> tuple[Array, Array]:
    """Draw formants in Hz for each recording's first and second vowel.

    Both results are (rows, 3).
    """
    vowel_habit = generator.normal(1, 0.06, (speakers, len(VOWELS), 3))
    tract_length = generator.uniform(0.88, 1.22, (speakers, 1, 1))
    formants = np.array(list(VOWELS.values()))[None] * (vowel_habit * tract_length)
    letters = np.array([[list(VOWELS).index(letter) for letter in pair] for pair in WORDS])
    first, second = (formants[speaker, letters[word, side]] for side in (0, 1))
    return first, second


def _excitation(
    generator: np.random.Generator, speakers: int, speaker: Array, position: Array
) -> Array:
    """Generate the voice source (rows, samples): glottal pulses plus breath noise.

    The pitch falls within a word.
    """
    rows = len(speaker)
    own_pitch = np.exp(generator.uniform(np.log(85), np.log(240), speakers))
    pitch = own_pitch[speaker] * generator.normal(1, 0.06, rows)
    fall = 1 - generator.uniform(0, 0.2, rows)[:, None] * np.clip(position, 0, 1)
    cycles = np.cumsum(pitch[:, None] * fall, axis=1) / RATE
    pulses = np.diff(np.floor(cycles), axis=1, prepend=0)
    breath = generator.uniform(0.005, 0.05, speakers)[speaker][:, None]
    excitation: Array = pulses + breath * generator.normal(size=position.shape)
    return excitation


def _resonate(sound: Array, frequency: Array, bandwidth: Array) -> Array:
    """Filter audio by a resonator whose frequency changes over time.

    `frequency` and `bandwidth` are (rows, samples) in Hz.
    """
    radius = np.exp(-np.pi * bandwidth / RATE)
    turn = 2 * radius * np.cos(2 * np.pi * frequency / RATE)
    gain = 1 - turn + radius**2
    out = np.zeros((sound.shape[1] + 2, len(sound)))
    feed, back, decay = (values.T.copy() for values in (gain * sound, turn, radius**2))
    for step in range(sound.shape[1]):
        out[step + 2] = feed[step] + back[step] * out[step + 1] - decay[step] * out[step]
    return out[2:].T


def _recorded(generator: np.random.Generator, sound: Array, snr_db: float) -> Array:
    """Add noise; scale randomly to whole numbers in the 16-bit range."""
    sound = np.diff(sound, axis=1, prepend=0)  # radiation from the lips
    sound /= np.sqrt((sound**2).mean(axis=1, keepdims=True))
    noisy = sound + generator.normal(size=sound.shape) * 10 ** (-snr_db / 20)
    loudness = generator.uniform(0.1, 0.9, (len(sound), 1))
    recorded: Array = np.rint(noisy / np.abs(noisy).max(axis=1, keepdims=True) * loudness * 32767)
    return recorded


def _by_spectrum(data: Dataset) -> Array:
    """Predict test probabilities (n, words) by logistic regression on mean spectra."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(_mean_spectrum(data.train.inputs["audio"]), data.train.target)
    shares: Array = model.predict_proba(_mean_spectrum(data.test.inputs["audio"]))
    return shares


def _mean_spectrum(audio: Array) -> Array:
    """Compute the mean log power of audio in 32 bands, without loudness.

    The result is (n, 32).
    """
    frames = audio[:, : audio.shape[1] // 256 * 256].reshape(len(audio), -1, 256)
    spectra = np.abs(np.fft.rfft(frames * np.hanning(256), axis=2)) ** 2
    power = spectra.mean(axis=1)[:, 1:]
    bands: Array = np.log(power.reshape(len(audio), 32, 4).mean(axis=2) + 1e-9)
    level: Array = bands.mean(axis=1, keepdims=True)
    return np.subtract(bands, level)


NUMBERS = ("tenure_months", "monthly_fee", "calls_to_support", "data_used")
CATEGORIES = ("contract", "payment", "region", "data_unit")
CONTRACTS, PAYMENTS = ("monthly", "yearly", "two years"), ("card", "bank", "invoice")
REGIONS = ("north", "south", "east", "west")
MEGABYTES = {"MB": 1.0, "GB": 1024.0}
UNKNOWN_CALLS = 999  # code for an unknown count, as many databases have one


def churn(seed: int = 0, *, rows: int = 3000) -> Dataset:
    """Generate a dirty customer table, with whether each customer leaves as target.

    `numbers` (n, 4) has the columns NUMBERS, NaN for gaps; `categories` (n, 4) of str has the
    columns CATEGORIES, "" for gaps. The data are as dirty as real ones: `data_used` is in the unit
    of `data_unit`, categories have stray blanks and capitals, a tenth of all values is missing,
    and 999 support calls mean unknown. The reference "best possible" is the true probability,
    computed before the data were made dirty, so no model can reach it.
    """
    generator = np.random.default_rng(seed)
    tenure = generator.gamma(1.5, 18, rows)
    fee = generator.normal(45, 15, rows).clip(10)
    calls = generator.poisson(1.5, rows).astype(np.float64)
    megabytes = np.exp(generator.normal(8.5, 1, rows))
    contract = generator.choice(3, rows, p=[0.55, 0.3, 0.15])
    payment, region = generator.integers(0, 3, rows), generator.integers(0, 4, rows)
    logit = (
        0.2 - 0.035 * tenure + 0.03 * (fee - 45) + 0.55 * calls - 0.9 * (np.log(megabytes) - 8.5)
        + np.array([1.0, -0.8, -1.8])[contract] + np.array([-0.3, -0.3, 0.6])[payment]
        + 0.8 * ((contract == 0) & (fee > 50))
    )  # fmt: skip
    chance = 1 / (1 + np.exp(-1.3 * (logit - 0.9)))
    target = (generator.random(rows) < chance).astype(np.int64)

    unit = generator.choice(["MB", "GB"], rows)
    used = megabytes / np.where(unit == "GB", MEGABYTES["GB"], MEGABYTES["MB"])
    numbers = np.column_stack([tenure.round(1), fee.round(2), calls, used.round(3)])
    gaps = generator.random(numbers.shape) < 0.1
    numbers[gaps] = np.nan
    numbers[gaps[:, 2] & (generator.random(rows) < 0.5), 2] = UNKNOWN_CALLS
    columns = [(CONTRACTS, contract), (PAYMENTS, payment), (REGIONS, region)]
    texts = [np.array(names, object)[values] for names, values in columns]
    typed = [_typed(values, generator) for values in texts]
    categories = np.column_stack([*typed, unit.astype(object)])
    examples = Examples(
        {"numbers": numbers.astype(np.float32), "categories": categories},
        target,
        references={BEST_POSSIBLE: np.column_stack([1 - chance, chance])},
    )
    return split(
        examples,
        source=f"synthetic:churn@1?seed={seed}&rows={rows}",
        sha256=digest(numbers, categories, target),
        labels=("stays", "leaves"),
        columns={"numbers": NUMBERS, "categories": CATEGORIES},
        gaps=True,
    )


# Functions that respell a category, and the share of cells that each respells.
SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    str.capitalize,
    lambda text: f" {text} ",
    lambda _: "",
)
SPELLING_SHARES = (0.6, 0.1, 0.1, 0.1, 0.1)


def _typed(values: Array, generator: np.random.Generator) -> Array:
    """Add typing noise to category texts: capitals, stray blanks, and gaps."""
    styles = generator.choice(len(SPELLINGS), len(values), p=SPELLING_SHARES)
    spelled = [SPELLINGS[style](text) for style, text in zip(styles, values, strict=True)]
    return np.array(spelled, object)
