"""Honest generators: seeded, with what cannot be known stated, and named in the manifest by version and settings.

What a perfect model would say is in `Examples.references` as "best possible", so that a score can be read against it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import BEST_POSSIBLE, Dataset, Examples, digest, split

Array = NDArray[Any]

SEASON = 12  # steps
MEMORY, NOISE = 0.7, 0.3  # of the autoregression


def series(seed: int = 0, *, count: int = 300, windows: int = 5, length: int = 48) -> Dataset:
    """The next value of a seasonal series: `series` (n, length, 1), target (n,). Split by series.

    Level, amplitude, harmonics and phase differ by series; what is left is an autoregression with the coefficient 0.7
    and normal noise of deviation 0.3, which is the lowest RMSE there can be. Known: last value, seasonal naive.
    """
    generator = np.random.default_rng(seed)
    steps = length + windows * SEASON // 2 + 1
    time = np.arange(steps)
    level, height = generator.normal(0, 2, (count, 1)), generator.uniform(0.5, 2, (count, 1))
    phase = generator.uniform(0, 2 * np.pi, (2, count, 1))
    second = generator.uniform(0, 0.5, (count, 1))
    angle = 2 * np.pi * time[None] / SEASON
    steady = level + height * (np.sin(angle + phase[0]) + second * np.sin(2 * angle + phase[1]))
    noise = generator.normal(0, NOISE, (count, steps))
    rest = np.empty((count, steps))
    rest[:, 0] = noise[:, 0] / math.sqrt(1 - MEMORY**2)
    for step in range(1, steps):
        rest[:, step] = MEMORY * rest[:, step - 1] + noise[:, step]
    values = steady + rest

    starts = np.arange(windows) * (SEASON // 2)
    shown = np.concatenate([values[:, start : start + length] for start in starts])
    ends = np.repeat(starts + length, count)
    which = np.tile(np.arange(count), windows)
    examples = Examples(
        {"series": shown[:, :, None].astype(np.float32)},
        values[which, ends].astype(np.float32),
        np.array([f"series {number}" for number in which]),
        {
            BEST_POSSIBLE: steady[which, ends] + MEMORY * rest[which, ends - 1],
            "last value": shown[:, -1],
            "seasonal naive": shown[:, -SEASON],
        },
    )
    source = f"synthetic:series@1?seed={seed}&count={count}&windows={windows}&length={length}"
    return split(examples, source=source, sha256=digest(shown, examples.target), by="series")


def interactions(
    seed: int = 0,
    *,
    users: int = 1200,
    items: int = 300,
    rank: int = 6,
    taken: int = 24,
    held_out: int = 6,
) -> Dataset:
    """What a user takes next: `history` (n, taken) item numbers 1 to `items`, `ratings` (n, taken) of them, 1 to 5.

    Taste is of low rank, a few items are popular with everybody, and users take (and so rate) what they like: ratings
    are missing not at random. Each user's takings are drawn by exp(popularity + taste); `held_out` of them, picked at
    random, are the target: relevance (n, items + 1), 1 where held out, -1 for the history and for item 0, which pads.
    Split by user, so that a model has to do with the history of somebody it has never seen.
    """
    generator = np.random.default_rng(seed)
    tastes, traits = generator.normal(size=(users, rank)), generator.normal(size=(items, rank))
    affinity = tastes @ traits.T / math.sqrt(rank)
    popularity = generator.permutation(-np.log(np.arange(1, items + 1)) * 0.7)
    score = popularity[None] + 2 * affinity
    drawn = np.argsort(-(score + generator.gumbel(size=score.shape)), axis=1)[:, : taken + held_out]
    drawn = generator.permuted(drawn, axis=1)  # else the best loved came first
    history, target = drawn[:, :taken], drawn[:, taken:]
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
    source = f"synthetic:interactions@1?seed={seed}&users={users}&items={items}&rank={rank}&taken={taken}"
    return split(
        examples,
        source=source,
        sha256=digest(history, ratings, relevance),
        by="user",
        stratify=False,
    )


RATE = 8000  # Hz
VOWELS = {  # formants in Hz and bandwidths near a tenth of them, after Peterson and Barney (1952), men
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
    """Ten two-vowel words of many voices: `audio` (n, seconds x 8000) in [-1, 1]. Split by speaker.

    A train of glottal pulses goes through three resonators whose frequencies glide from the first vowel's formants to
    the second's. Speakers differ in pitch, tract length, habit of each vowel and breath; takes in pitch, tempo, onset
    and loudness. White noise is added at `snr_db`. Held-out speakers are hard: within a speaker, words hardly vary.
    Known in the test part: what a logistic regression makes of the mean spectrum, which cannot tell "ai" from "ia".
    """
    generator = np.random.default_rng(seed)
    rows, samples = speakers * len(WORDS) * takes, round(seconds * RATE)
    speaker = np.repeat(np.arange(speakers), len(WORDS) * takes)
    word = np.tile(np.repeat(np.arange(len(WORDS)), takes), speakers)
    habit = generator.normal(1, 0.06, (speakers, len(VOWELS), 3)) * generator.uniform(
        0.88, 1.22, (speakers, 1, 1)
    )
    formants = np.array(list(VOWELS.values()))[None] * habit  # (speakers, vowels, 3)
    letters = np.array([[list(VOWELS).index(letter) for letter in pair] for pair in WORDS])
    first, second = (formants[speaker, letters[word, side]] for side in (0, 1))  # (rows, 3)

    length = generator.uniform(0.6, 0.95, rows) * samples
    onset = generator.uniform(0, 1, rows) * (samples - length)
    position = (np.arange(samples)[None] - onset[:, None]) / length[
        :, None
    ]  # 0 to 1 within the word
    middle, speed = generator.uniform(0.4, 0.6, rows), generator.uniform(6, 12, rows)
    glide = 1 / (1 + np.exp(-speed[:, None] * (position - middle[:, None])))
    envelope = np.sin(np.pi * np.clip(position, 0, 1)) ** 0.5

    pitch = np.exp(generator.uniform(np.log(85), np.log(240), speakers))[
        speaker
    ] * generator.normal(1, 0.06, rows)
    fall = 1 - generator.uniform(0, 0.2, rows)[:, None] * np.clip(position, 0, 1)
    cycles = np.cumsum(pitch[:, None] * fall, axis=1) / RATE
    pulses = np.diff(np.floor(cycles), axis=1, prepend=0)
    breath = generator.uniform(0.005, 0.05, speakers)[speaker][:, None] * generator.normal(
        size=(rows, samples)
    )
    sound = (pulses + breath) * envelope
    for number in range(3):
        frequency = first[:, number, None] + (second - first)[:, number, None] * glide
        sound = _resonate(sound, frequency, 50 + 0.06 * frequency)

    sound = np.diff(sound, axis=1, prepend=0)  # from the lips into the room
    sound /= np.sqrt((sound**2).mean(axis=1, keepdims=True))
    noisy = sound + generator.normal(size=sound.shape) * 10 ** (-snr_db / 20)
    loudness = generator.uniform(0.1, 0.9, (rows, 1))
    audio = np.rint(
        noisy / np.abs(noisy).max(axis=1, keepdims=True) * loudness * 32767
    )  # as a recording of 16 bits
    examples = Examples(
        {"audio": (audio / 32768).astype(np.float32)},
        word.astype(np.int64),
        np.array([f"speaker {number}" for number in speaker]),
    )
    source = f"synthetic:speech-formant@1?seed={seed}&speakers={speakers}&takes={takes}&seconds={seconds}&snr_db={snr_db}"
    data = split(
        examples, source=source, sha256=digest(audio.astype(np.int64)), by="speaker", labels=WORDS
    )
    return replace(data, test=replace(data.test, references={"mean spectrum": _by_spectrum(data)}))


def _by_spectrum(data: Dataset) -> Array:
    """Probabilities (n, words) for the test part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def spectrum(audio: Array) -> Array:
        frames = audio[:, : audio.shape[1] // 256 * 256].reshape(len(audio), -1, 256) * np.hanning(
            256
        )
        power = (np.abs(np.fft.rfft(frames, axis=2)) ** 2).mean(axis=1)[:, 1:]
        bands: Array = np.log(power.reshape(len(audio), 32, 4).mean(axis=2) + 1e-9)
        level: Array = bands.mean(axis=1, keepdims=True)
        return np.subtract(bands, level)

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(spectrum(data.train.inputs["audio"]), data.train.target)
    shares: Array = model.predict_proba(spectrum(data.test.inputs["audio"]))
    return shares


def _resonate(sound: Array, frequency: Array, bandwidth: Array) -> Array:
    """Two poles whose frequency (rows, samples) in Hz moves with time."""
    radius = np.exp(-np.pi * bandwidth / RATE)
    turn = 2 * radius * np.cos(2 * np.pi * frequency / RATE)
    gain = 1 - turn + radius**2
    out = np.zeros((sound.shape[1] + 2, len(sound)))
    feed, back, decay = ((values).T.copy() for values in (gain * sound, turn, radius**2))
    for step in range(sound.shape[1]):
        out[step + 2] = feed[step] + back[step] * out[step + 1] - decay[step] * out[step]
    return out[2:].T


NUMBERS = ("tenure_months", "monthly_fee", "calls_to_support", "data_used")
CATEGORIES = ("contract", "payment", "region", "data_unit")
CONTRACTS, PAYMENTS = ("monthly", "yearly", "two years"), ("card", "bank", "invoice")
REGIONS = ("north", "south", "east", "west")
MEGABYTES = {"MB": 1.0, "GB": 1024.0}


def churn(seed: int = 0, *, rows: int = 3000) -> Dataset:
    """Who leaves a provider: `numbers` (n, 4) with NaN for gaps and `categories` (n, 4) of str with "" for gaps.

    The columns are NUMBERS and CATEGORIES. The data are as they come: `data_used` is in the unit that `data_unit`
    names, categories are spelled with stray blanks and capitals, a tenth of all values is missing, and a support call
    count of 999 means unknown. "Best possible" is the true probability, which sees the data before they were spoilt:
    no model can beat it, and with gaps none can reach it.
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
    numbers[gaps[:, 2] & (generator.random(rows) < 0.5), 2] = 999
    texts = [np.array(names, object)[values] for names, values in
             ((CONTRACTS, contract), (PAYMENTS, payment), (REGIONS, region))]  # fmt: skip
    categories = np.column_stack(
        [*(_spelled(values, generator) for values in texts), unit.astype(object)]
    )
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


def _spelled(values: Array, generator: np.random.Generator) -> Array:
    """As people type them."""
    style = generator.choice(5, len(values), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    ways = (str, str.upper, str.capitalize, lambda text: f" {text} ", lambda _: "")
    return np.array([ways[how](text) for text, how in zip(values, style, strict=True)], object)
