"""Whether the diffusion is better than the fill, on tumours that are so by construction."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nnunet_difftumor.evaluation.realism import worth
from nnunet_difftumor.evaluation.realism.measures.probes import NO_PROBES, ProbeResult
from nnunet_difftumor.evaluation.realism.measures.tumors import FILE_COLUMNS
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tables import plain
from nnunet_difftumor.evaluation.realism.tumors import making

PATIENTS = tuple("abcdefghij")
SETTINGS = EvaluationSettings(bootstrap_draws=100)


def table(**level_hu: float) -> pd.DataFrame:
    """A real tumour of 24 mm a patient and, in place and transplanted, one by each method, brighter by so many HU."""
    rng, rows = np.random.default_rng(0), []
    for patient in PATIENTS:
        own_hu = 30.0 + rng.normal(0.0, 5.0)

        def row(experiment: str, method: str, added_hu: float, patient: str = patient, own_hu: float = own_hu) -> dict:
            image_hu = own_hu + added_hu + rng.normal(0.0, 10.0, (8, 8, 8))
            made = SimpleNamespace(
                scan=SimpleNamespace(window_hu=(-175.0, 250.0)), image_hu=image_hu, label=np.ones((8, 8, 8), dtype=bool)
            )
            ratio = math.exp(added_hu / 20.0 + rng.normal(0.0, 0.02))
            names = {"experiment": experiment, "method": method, "patient": patient, "case": patient, "place": "1"}
            measures = {"mean_hu": image_hu.mean(), "lowpass_sd_hu": 8.0 * ratio, "highpass_ratio": ratio}
            return {**names, **measures, "draw": 0, "radius_mm": 12.0, "real_lowpass_sd_hu": 8.0, "made": made}

        rows.append(row(making.IN_PLACE, making.REAL, 0.0))
        rows += [
            row(experiment, method, level_hu[name])
            for experiment in (making.IN_PLACE, making.TRANSPLANT)
            for name, method in (("fill", making.TEXTURED_FILL), ("diffusion", making.GENERATED))
        ]
    return pd.DataFrame(rows).reindex(columns=[*FILE_COLUMNS, "radius_mm", "made"])


def probe(synthetic: float, trainings: int = 1, copies: int = 1) -> ProbeResult:
    """Scores of 12 pairs a patient, of which the synthetic ones are higher by so much."""
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(len(PATIENTS)), 12)
    real, made = (level + rng.normal(size=(trainings, len(patient))) for level in (0.0, synthetic))
    repeated = (np.tile(each, copies) for each in (patient, patient, np.full(len(patient), 24.0), real, made))
    return ProbeResult(PATIENTS, *repeated)


def verdicts(found: dict) -> dict[str, str]:
    return {row["measure"]: row["verdict"] for row in found["rows"] if row["size"] == "all"}


def test_a_diffusion_that_is_nearer_in_everything_is_said_to_be():
    found = worth.compare(table(fill=20.0, diffusion=4.0), NO_PROBES, SETTINGS)
    said = verdicts(found)
    assert said.pop("plausible means, transplant") in (worth.BETTER, worth.ALIKE)
    assert set(said.values()) == {worth.BETTER}
    assert "better than the textured fill in: W1 of HU, in place, HU (every size)" in found["sentence"]
    assert "It is worse in nothing." in found["sentence"]
    (row,) = (row for row in found["rows"] if (row["measure"], row["size"]) == ("W1 of HU, in place, HU", "all"))
    assert row["difference"].value == pytest.approx(-16.0, abs=1.0)
    assert row["compared_with"] == "10 real tumours of every size, 10 patients"


def test_a_diffusion_that_is_farther_is_not_praised():
    found = worth.compare(table(fill=2.0, diffusion=-15.0), NO_PROBES, SETTINGS)
    assert worth.BETTER not in verdicts(found).values()
    assert "better than the textured fill in nothing." in found["sentence"]
    assert "It is worse in: W1" in found["sentence"]


def test_the_same_tumours_twice_are_no_difference():
    tumors = table(fill=5.0, diffusion=0.0)
    fill = tumors[tumors["method"] == making.TEXTURED_FILL]
    same = pd.concat([tumors[tumors["method"] == making.REAL], fill, fill.assign(method=making.GENERATED)])
    found = worth.compare(same, NO_PROBES, SETTINGS)
    assert worth.BETTER not in verdicts(found).values()
    assert all(row["difference"].value == pytest.approx(0.0) for row in found["rows"])
    assert "better than the textured fill in nothing. It is worse in nothing." in found["sentence"]


def test_tumours_of_one_size_count_once_in_the_sentence():
    """All are of 24 mm: the rows of 20 mm and more repeat those of every size."""
    found = worth.compare(table(fill=20.0, diffusion=4.0), NO_PROBES, SETTINGS)
    assert {row["size"] for row in found["rows"]} == {"all", ">=20 mm"}
    assert ">=20 mm" not in found["sentence"]


def test_structure_of_small_tumours_is_not_judged_by_that_of_large_ones():
    tumors = table(fill=20.0, diffusion=4.0)
    small = tumors["experiment"] == making.TRANSPLANT
    found = worth.compare(tumors.assign(radius_mm=np.where(small, 4.0, 12.0)), NO_PROBES, SETTINGS)
    rows = {row["measure"]: row for row in found["rows"] if row["size"] == "<10 mm"}
    assert rows["low-pass sd over real, transplant"]["verdict"] == worth.UNKNOWN
    assert rows["W1 of HU, transplant, HU"]["verdict"] == worth.BETTER
    assert rows["W1 of HU, transplant, HU"]["compared_with"] == "10 real tumours of every size, 10 patients"
    assert verdicts(found)["low-pass sd over real, in place"] == worth.BETTER


def test_plausible_means_of_few_patients_are_not_compared():
    few = table(fill=20.0, diffusion=4.0)
    found = worth.compare(few[few["patient"].isin([*"abcdefg"])], NO_PROBES, SETTINGS)
    assert verdicts(found)["plausible means, transplant"] == worth.UNKNOWN


def test_classifiers_are_compared_by_patient():
    auc = {making.GENERATED: probe(0.3), making.TEXTURED_FILL: probe(1.5)}
    found = worth.compare(table(fill=5.0, diffusion=0.0), {**NO_PROBES, "two_sample_auc": auc}, SETTINGS)
    assert verdicts(found)["two-sample classifier, AUC, in place"] == worth.BETTER
    (row,) = (row for row in found["rows"] if row["measure"].startswith("two-sample") and row["size"] == "all")
    assert math.isnan(row["methods"]["copy-paste"].value)
    assert row["difference"].value == pytest.approx(
        auc[making.GENERATED].pooled_auc().value - auc[making.TEXTURED_FILL].pooled_auc().value
    )


def test_the_files_hold_every_figure(tmp_path):
    found = plain(worth.compare(table(fill=20.0, diffusion=4.0), NO_PROBES, SETTINGS))
    worth.write_table(found, tmp_path)
    stored = pd.read_csv(tmp_path / "worth.csv")
    assert len(stored) == 6 * len(found["rows"])
    lines = (tmp_path / "worth.md").read_text().splitlines()
    assert lines[0] == found["sentence"]
    assert "No tumour of <10 mm." in lines
    assert sum(line.startswith("| W1 of HU, in place") for line in lines) == 2


def test_an_area_is_the_mean_of_those_of_the_trainings():
    three = probe(0.8, trainings=3)
    single = [
        replace(three, real_scores=three.real_scores[[k]], synthetic_scores=three.synthetic_scores[[k]])
        for k in range(3)
    ]
    assert three.pooled_auc().value == pytest.approx(np.mean([each.pooled_auc().value for each in single]))
    assert three.within_patient_auc().value == pytest.approx(
        np.mean([each.within_patient_auc().value for each in single])
    )


def test_more_tumours_of_the_same_patients_narrow_no_interval():
    """Ten copies of each patch are no new patients."""
    once, often = (probe(0.8, copies=copies).pooled_auc() for copies in (1, 10))
    assert often.value == pytest.approx(once.value)
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=0.005)
    tumors = table(fill=20.0, diffusion=4.0)
    copies = pd.concat([tumors, *[tumors[tumors["method"] != making.REAL]] * 9])
    rows, more = (worth.compare(each, NO_PROBES, SETTINGS)["rows"] for each in (tumors, copies))
    for row, other in zip(rows, more, strict=True):
        for name in ("textured fill", "diffusion"):
            ends = [(each["methods"][name].low, each["methods"][name].high) for each in (row, other)]
            assert ends[1] == pytest.approx(ends[0], rel=0.02), (row["measure"], name)
