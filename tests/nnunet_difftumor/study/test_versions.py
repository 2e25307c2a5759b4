"""Versions of nnU-Net and its augmentation: recorded in each run, and never mixed within a study."""

import json
from types import SimpleNamespace

import pytest

from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.study.versions import VERSIONS_FILE, check_versions, installed_versions, record_versions

OLD = {"batchgeneratorsv2": "0.3.3"}


@pytest.fixture
def study(tmp_path):
    """Runs by name and state; `versions` is what trained them, "unknown" for runs without a record."""

    def make(**runs):
        made, states = [], {}
        for name, (state, versions) in runs.items():
            run = SimpleNamespace(name=name, folder=tmp_path / name)
            if versions != "unknown":
                record_versions(run)
                path = run.folder / VERSIONS_FILE
                path.write_text(json.dumps({**json.loads(path.read_text()), **versions}))
            made.append(run)
            states[name] = state
        return made, lambda run: states[run.name]

    return make


def test_a_record_has_the_versions_of_everything_that_trains(study, tmp_path):
    study(a=("finished", {}))
    record = json.loads((tmp_path / "a" / VERSIONS_FILE).read_text())
    assert record == installed_versions()
    assert set(record) == {"nnunetv2", "batchgeneratorsv2", "torch", "nnunet-difftumor"}


@pytest.mark.parametrize("trains", [True, False])
def test_finished_runs_of_different_versions_are_refused_by_name(study, trains):
    runs, state_of = study(a=("finished", {}), b=("finished", OLD), c=("finished", OLD))
    with pytest.raises(OutputExistsError, match=r"(?s)different versions.*: a\n.*batchgeneratorsv2 0\.3\.3: b, c\n"):
        check_versions(runs, state_of, trains=trains)


@pytest.mark.parametrize("package", ["nnunetv2", "batchgeneratorsv2"])
@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_a_study_is_not_continued_with_other_versions(study, state, package):
    runs, state_of = study(a=(state, {package: "0.0.1"}), b=("not started", "unknown"))
    with pytest.raises(OutputExistsError, match=rf"(?s){package} 0\.0\.1.*: a\n.*: what is installed"):
        check_versions(runs, state_of, trains=True)


def test_what_one_other_version_has_finished_may_be_compared(study):
    runs, state_of = study(a=("finished", OLD), b=("finished", OLD), c=("interrupted", {}))
    check_versions(runs, state_of, trains=False)
    check_versions(runs[:2], state_of, trains=True)  # nothing is left to train


def test_versions_of_torch_and_of_this_package_may_differ(study):
    runs, state_of = study(a=("finished", {"torch": "2.4", "nnunet-difftumor": "0.0.1"}), b=("not started", "unknown"))
    check_versions(runs, state_of, trains=True)


def test_runs_without_a_record_are_accepted_with_one_line(study, capsys):
    runs, state_of = study(a=("finished", "unknown"), b=("finished", "unknown"), c=("finished", {}))
    check_versions(runs, state_of, trains=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: 2 runs have no versions.json")
    assert line.endswith(": a, b")


def test_what_was_never_started_says_nothing(study, capsys):
    runs, state_of = study(a=("not started", "unknown"), b=("not started", OLD))
    check_versions(runs, state_of, trains=True)
    assert capsys.readouterr() == ("", "")
