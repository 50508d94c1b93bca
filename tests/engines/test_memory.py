"""What there is, and what a model takes."""

import json
from types import SimpleNamespace

import pytest

from config import ModelSettings
from engines import memory
from engines.memory import GIB, PROCESS_BYTES


def safetensors(path, sizes):
    """Write a file whose header describes tensors of `sizes` bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "I8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_weights_are_counted_from_the_headers(tmp_path):
    safetensors(tmp_path / "a.safetensors", {"x": 1000, "y": 24})
    safetensors(tmp_path / "b.safetensors", {"z": 100})

    assert memory.weights_bytes(tmp_path) == 1124


def test_only_the_files_of_the_index_count_where_there_is_one(tmp_path):
    safetensors(tmp_path / "model-1.safetensors", {"x": 1000})
    safetensors(tmp_path / "copy.safetensors", {"x": 1000})
    index = {"weight_map": {"x": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert memory.weights_bytes(tmp_path) == 1000


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"<html>not found</html>")

    with pytest.raises(ValueError, match="is not a safetensors file"):
        memory.weights_bytes(tmp_path)


def test_a_footprint_is_process_and_weights_and_kv_cache(tmp_path):
    safetensors(tmp_path / "a.safetensors", {"x": 1000})
    model = ModelSettings(name="a", source="./a", kv_cache_gb=0.5)

    assert memory.footprint_bytes(model, tmp_path) == PROCESS_BYTES + 1000 + GIB // 2


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 10 GiB available, in a cgroup whose files the test writes."""
    available = SimpleNamespace(available=10 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: available)
    files = {name: tmp_path / name for name in ("max", "current", "stat")}
    row = (str(files["max"]), str(files["current"]), str(files["stat"]), "inactive_file")
    monkeypatch.setattr(memory, "_CGROUP_FILES", (row,))
    return files


def write(files, limit, current, cache):
    files["max"].write_text(f"{limit}\n")
    files["current"].write_text(f"{current}\n")
    files["stat"].write_text(f"anon 5\ninactive_file {cache}\n")


def test_without_a_cgroup_the_machine_counts(machine):
    assert memory.available_bytes() == 10 * GIB


def test_the_limit_of_a_cgroup_counts_and_its_page_cache_does_not(machine):
    write(machine, 4 * GIB, 3 * GIB, 2 * GIB)

    assert memory.available_bytes() == 3 * GIB


def test_a_cgroup_without_a_limit_is_ignored(machine):
    write(machine, "max", 3 * GIB, 0)

    assert memory.available_bytes() == 10 * GIB


def test_never_less_than_nothing_is_available(machine):
    write(machine, 1 * GIB, 3 * GIB, 0)

    assert memory.available_bytes() == 0


def test_the_operator_s_budget_counts_else_a_share_of_what_is_available(machine):
    assert memory.budget_bytes(2.5) == int(2.5 * GIB)
    assert memory.budget_bytes(None) == 8 * GIB
