from __future__ import annotations

import sys

import pytest

from nnunet_difftumor.own_packages import require_own_packages


def test_our_own_packages_pass():
    require_own_packages()


def test_a_foreign_package_is_named_and_not_run(tmp_path, monkeypatch):
    foreign = tmp_path / "diffusion"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise RuntimeError('foreign code was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "diffusion" or name.startswith("diffusion.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"diffusion.*another distribution.*--force-reinstall") as error:
        require_own_packages(("diffusion",))
    assert str(foreign / "__init__.py") in str(error.value)


def test_a_missing_package_tells_how_to_install_it():
    with pytest.raises(ImportError, match="Reinstall"):
        require_own_packages(("no_such_package_of_ours",))
