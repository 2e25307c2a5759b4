from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autoencoder.engine.records import CsvHistory, TrainingRecord
from autoencoder.engine.settings import FitStep


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(folder: Path, steps: Iterable[int], steps_done: int, scale: float) -> None:
    with TrainingRecord(folder, steps_done, tensorboard_every=1) as record:
        for index in steps:
            record.add_step(FitStep(index, {"total": scale * index}, 0.1, 0.2, checkpoint_follows=index == 3))
        record.add_heldout(index, {"mae_hu_all": scale})


def test_history_has_one_row_per_step_with_the_named_columns(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 5), steps_done=0, scale=1.0)
    rows = _rows(tmp_path / "history.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[1] == {"step": "2", "total": "2.0", "learning_rate": "0.1", "gradient_norm": "0.2"}


def test_a_resumed_run_replaces_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 6), steps_done=0, scale=1.0)
    _write(tmp_path, range(4, 8), steps_done=3, scale=10.0)
    totals = [(int(row["step"]), float(row["total"])) for row in _rows(tmp_path / "history.csv")]
    assert totals == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0), (7, 70.0)]
    assert [row["step"] for row in _rows(tmp_path / "heldout_history.csv")] == ["7"]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 6), steps_done=0, scale=1.0)
    _write(tmp_path, range(4, 8), steps_done=3, scale=10.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("training/total")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0), (7, 70.0)]


def test_what_belongs_to_a_checkpoint_is_on_the_disk_before_the_record_is_closed(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0) as record:
        for index in (1, 2, 3):
            record.add_step(FitStep(index, {"total": 1.0}, 0.1, 0.2, checkpoint_follows=index == 3))
        assert len(_rows(tmp_path / "history.csv")) == 3
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("training/total")] == [3]


def test_half_a_row_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,total\n1,1.0\n2,2.0\n3")
    history = CsvHistory(path, steps_done=3)
    history.add(3, {"total": 3.0})
    history.close()
    assert [row["total"] for row in _rows(path)] == ["1.0", "2.0", "3.0"]


def test_a_run_killed_before_its_first_row_starts_a_new_table(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.touch()
    history = CsvHistory(path, steps_done=0)
    history.add(1, {"total": 1.0})
    history.close()
    assert [row["step"] for row in _rows(path)] == ["1"]


def test_pictures_reach_tensorboard(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0) as record:
        record.add_picture(5, "slice", np.zeros((4, 6), np.float32))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("slice")
    assert (image.step, image.height, image.width) == (5, 4, 6)
