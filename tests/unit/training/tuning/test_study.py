"""Study: trials are ranked, pruned, limited and resumed; the first failures end it."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.trial import Trial, TrialState

from tests.unit.training.tuning.searches import EVERYTHING, VALLEY, make_search
from training.errors import InvalidCheckpoint, TrainingError
from training.tuning.study import RECORD_ROWS, TABLE_ROWS, Study

STRATEGIES = ("grid", "random", "optuna")


def make_study(folder: Path | None = None, *, strategy: str = "random", limit: int = 8) -> Study:
    return Study(make_search(strategy, limit, **VALLEY), folder)


def next_trial(study: Study) -> Trial:
    trial = study.next()
    assert trial is not None
    return trial


def finish_trials(study: Study, count: int) -> None:
    for _ in range(count):
        trial = next_trial(study)
        study.report(trial, {1: 0.5, 2: 0.25})
        study.finish(trial, TrialState.COMPLETE, study.settings(trial)["lr"])


def summary(study: Study) -> list[Any]:
    return [
        (trial.number, study.settings(trial), trial.state, trial.value, trial.intermediate_values)
        for trial in study.trials
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ended", [0, 3, 9])
def test_a_resumed_search_equals_an_uninterrupted_one(
    strategy: str, ended: int, tmp_path: Path
) -> None:
    whole = make_study(strategy=strategy, limit=9)
    count = 10 if strategy == "grid" else 9  # three by three, and the recipe's own settings
    finish_trials(whole, count)
    finish_trials(make_study(tmp_path, strategy=strategy, limit=9), ended)
    resumed = make_study(tmp_path, strategy=strategy, limit=9)
    finish_trials(resumed, count - ended)

    assert summary(resumed) == summary(whole)
    assert resumed.next() is None


def test_an_interrupted_trial_comes_first_with_its_progress(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    finish_trials(study, 2)
    interrupted = next_trial(study)
    study.report(interrupted, {1: 0.5})
    study.add_duration(interrupted, 2.0)
    resumed = make_study(tmp_path)
    trial = next_trial(resumed)
    resumed.report(trial, {1: 9.0, 2: 0.25})
    resumed.add_duration(trial, 3.0)
    resumed.finish(trial, TrialState.COMPLETE, 0.25)

    assert trial.number == interrupted.number == 2
    assert resumed.settings(trial) == study.settings(interrupted)
    assert resumed.trials[2].intermediate_values == {1: 0.5, 2: 0.25}
    assert resumed.trials[2].user_attrs["duration_s"] == 5.0


def test_a_trial_whose_sampling_was_interrupted_is_completed(tmp_path: Path) -> None:
    """The process was killed between two parameters: the journal has the first alone."""
    finish_trials(make_study(tmp_path), 1)
    next_trial(make_study(tmp_path))
    journal = tmp_path / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    assert '"param_name":"width"' in lines[-1]
    journal.write_text("".join(lines[:-1]))

    resumed = make_study(tmp_path)
    assert set(resumed.settings(next_trial(resumed))) == {"lr", "width"}


def test_half_a_line_in_the_journal_is_ignored(tmp_path: Path) -> None:
    """The process was killed while it wrote."""
    finish_trials(make_study(tmp_path), 2)
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code":4,"wor')
    resumed = make_study(tmp_path)
    finish_trials(resumed, 6)

    whole = make_study()
    finish_trials(whole, 8)
    assert summary(resumed) == summary(whole) == summary(make_study(tmp_path))


def test_a_limit_may_be_raised_later(tmp_path: Path) -> None:
    finish_trials(make_study(tmp_path, limit=3), 3)
    more = make_study(tmp_path, limit=4)

    assert next_trial(more).number == 3
    assert more.next(running=[3]) is None


def test_the_journal_of_a_different_search_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path, strategy="grid")
    different = [
        make_search("grid", 9, **VALLEY),
        make_search("random", 8, **VALLEY),
        make_search("grid", 8, seed=1, **VALLEY),
        make_search("grid", 8, **EVERYTHING),
    ]

    for search in different:
        with pytest.raises(InvalidCheckpoint, match="belongs to another search"):
            Study(search, tmp_path)


@pytest.mark.parametrize("text", ["{\n", "not a journal\n" * 2, '{"op_code":0}\n', "[]\n[]\n"])
def test_an_unreadable_journal_is_reported(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text(text)

    with pytest.raises(InvalidCheckpoint, match="cannot be read; remove it"):
        make_study(tmp_path)


def test_weak_trials_are_pruned_after_three_epochs_and_four_complete_trials() -> None:
    study = make_study()
    decisions = []
    for number in range(6):
        trial = next_trial(study)
        level = 9.0 if number in (0, 5) else 1.0  # lower is better
        pruned = []
        for epoch in range(1, 5):
            study.report(trial, {epoch: level / epoch})
            pruned.append(trial.should_prune())
        decisions.append(pruned)
        study.finish(trial, TrialState.COMPLETE, level / 4)

    assert decisions == [[False] * 4] * 5 + [[False, False, True, True]]


def test_a_pruned_trial_has_no_value() -> None:
    study = make_study()
    trial = next_trial(study)
    study.report(trial, {1: 0.5})
    study.finish(trial, TrialState.PRUNED)
    finish_trials(study, 1)

    rows = study.record()["tried"]
    assert [(row["state"], row["trial"]) for row in rows] == [("complete", 2), ("pruned", 1)]
    assert rows[1]["value"] is None
    assert rows[1]["epochs"] == 1


def test_the_best_value_wins_and_the_first_of_equal_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = make_study(limit=4)
    for value in (2.0, 1.0, 1.0, float("nan")):
        study.finish(next_trial(study), TrialState.COMPLETE, value)

    assert study.best.number == 1
    assert study.trials[3].state is TrialState.FAIL  # its metric is no number
    assert study.table()[0] == "random search over lr, width: 3 complete, 1 failed"
    assert "it has no rmse on the validation part" in capsys.readouterr().out


def test_a_search_without_a_complete_trial_has_no_best() -> None:
    study = make_study()
    study.finish(next_trial(study), TrialState.FAIL, reason="the loss is nan")

    with pytest.raises(TrainingError, match="no trial was completed: the loss is nan"):
        _ = study.best


@pytest.mark.parametrize(("limit", "failures"), [(8, 3), (2, 2)])
def test_a_search_ends_when_its_first_trials_fail(limit: int, failures: int) -> None:
    study = make_study(limit=limit)
    for _ in range(failures - 1):
        study.finish(next_trial(study), TrialState.FAIL, reason="first")

    message = f"{failures} of {failures} trials failed: last"
    with pytest.raises(TrainingError, match=message):
        study.finish(next_trial(study), TrialState.FAIL, reason="last")


def test_a_success_allows_any_number_of_failures() -> None:
    study = make_study()
    finish_trials(study, 1)
    while (trial := study.next()) is not None:
        study.finish(trial, TrialState.FAIL, reason="again")

    assert study.best.number == 0


def test_the_record_and_the_table_are_bounded() -> None:
    study = make_study(limit=200)
    finish_trials(study, 200)
    record = study.record()

    assert record["trials"] == 200
    assert len(record["tried"]) == RECORD_ROWS
    assert record["best"] == record["tried"][0]["settings"]
    assert len(study.table()) == TABLE_ROWS + 1
    json.dumps(record)
