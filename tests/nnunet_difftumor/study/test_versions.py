"""Versions of nnU-Net and its augmentation: recorded in each run, and never mixed within a study."""

from functools import partial
from types import SimpleNamespace

import pytest

from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.study.planning import check_versions
from nnunet_difftumor.study.runs import VERSIONS_FILE, installed_versions
from nnunet_difftumor.support.files.atomic_files import write_json

OLD = {"batchgeneratorsv2": "0.3.3"}


@pytest.fixture
def study(tmp_path):
    """Runs by name and state; `versions` is what trained them, "unknown" for runs without a record."""

    def make(**runs):
        made = []
        for name, (state, versions) in runs.items():
            run = SimpleNamespace(name=name, work_folder=tmp_path / name, state=partial(str, state))
            if versions != "unknown":
                write_json(run.work_folder / VERSIONS_FILE, {**installed_versions(), **versions})
            made.append(run)
        return made

    return make


def test_everything_that_trains_has_a_version():
    assert set(installed_versions()) == {"nnunetv2", "batchgeneratorsv2", "torch", "nnunet-difftumor"}


@pytest.mark.parametrize("trains", [True, False])
def test_finished_runs_of_different_versions_are_refused_by_name(study, trains):
    runs = study(a=("finished", {}), b=("finished", OLD), c=("finished", OLD))
    with pytest.raises(OutputExistsError, match=r"(?s)different versions.*: a\n.*batchgeneratorsv2 0\.3\.3: b, c\n"):
        check_versions(runs, trains=trains)


@pytest.mark.parametrize("package", ["nnunetv2", "batchgeneratorsv2"])
@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_a_study_is_not_continued_with_other_versions(study, state, package):
    runs = study(a=(state, {package: "0.0.1"}), b=("not started", "unknown"))
    with pytest.raises(OutputExistsError, match=rf"(?s){package} 0\.0\.1.*: a\n.*: what is installed"):
        check_versions(runs, trains=True)


def test_what_one_other_version_has_finished_may_be_compared(study):
    runs = study(a=("finished", OLD), b=("finished", OLD), c=("interrupted", {}))
    check_versions(runs, trains=False)
    check_versions(runs[:2], trains=True)  # nothing is left to train


def test_versions_of_torch_and_of_this_package_may_differ(study):
    runs = study(a=("finished", {"torch": "2.4", "nnunet-difftumor": "0.0.1"}), b=("not started", "unknown"))
    check_versions(runs, trains=True)


def test_runs_without_a_record_are_accepted_with_one_line(study, capsys):
    runs = study(a=("finished", "unknown"), b=("finished", "unknown"), c=("finished", {}))
    check_versions(runs, trains=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: 2 runs have no versions.json")
    assert line.endswith(": a, b")


def test_what_was_never_started_says_nothing(study, capsys):
    runs = study(a=("not started", "unknown"), b=("not started", OLD))
    check_versions(runs, trains=True)
    assert capsys.readouterr() == ("", "")
