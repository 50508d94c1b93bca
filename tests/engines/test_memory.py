"""How much memory there is, and how large weights are."""

import json
from types import SimpleNamespace

import pytest

from engines import memory
from engines.memory import GIB, Machine, Tensor
from tests.hollow import write_weights


def test_weights_are_counted_from_the_headers(tmp_path):
    write_weights(tmp_path / "a.safetensors", {"x": ("I8", 1000), "y": ("BF16", 3, 4)})
    write_weights(tmp_path / "b.safetensors", {"z": ("F32", 25)})

    assert memory.weights_bytes(tmp_path) == 1124
    assert list(memory.tensors(tmp_path)) == [
        Tensor("x", "I8", 1000, 1000),
        Tensor("y", "BF16", 12, 24),
        Tensor("z", "F32", 25, 100),
    ]


def test_only_the_files_of_the_index_count_where_there_is_one(tmp_path):
    write_weights(tmp_path / "model-1.safetensors", {"x": ("I8", 1000)})
    write_weights(tmp_path / "copy.safetensors", {"x": ("I8", 1000)})
    index = {"weight_map": {"x": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert memory.weights_bytes(tmp_path) == 1000


def test_a_file_of_the_index_that_is_not_here_is_missed(tmp_path):
    index = {"weight_map": {"x": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors"):
        memory.weights_bytes(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"<html>not found</html>")

    with pytest.raises(ValueError, match="is not a safetensors file"):
        memory.weights_bytes(tmp_path)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 12 GiB with 10 available; the test says in which cgroups this process is."""
    numbers = SimpleNamespace(total=12 * GIB, available=10 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: numbers)
    mounted = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "_CGROUPS", mounted)
    own = tmp_path / "proc_self_cgroup"
    monkeypatch.setattr(memory, "_OWN_CGROUPS", own)

    def be_in(line, **groups):
        own.write_text(f"12:cpuset:/elsewhere\n{line}\n")
        for path, files in groups.items():
            folder = mounted / path.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(f"{text}\n")

    return be_in


def v2(limit, current, cache=0, high="max"):
    stat = f"anon 5\nactive_file {cache // 2}\ninactive_file {cache - cache // 2}"
    return {
        "memory.max": limit,
        "memory.high": high,
        "memory.current": current,
        "memory.stat": stat,
    }


def v1(limit, usage, cache=0):
    stat = f"inactive_file 7\ntotal_active_file 0\ntotal_inactive_file {cache}"
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": usage,
        "memory.stat": stat,
    }


UNLIMITED_V1 = 9223372036854771712


@pytest.mark.parametrize(
    ("line", "groups", "limit", "available"),
    [
        pytest.param("0::/", {}, None, 10, id="no cgroup"),
        pytest.param("0::/", {".": v2(4 * GIB, 1 * GIB)}, 4, 3, id="a container sees its root"),
        pytest.param(
            "0::/", {".": v2(4 * GIB, 3 * GIB, cache=2 * GIB)}, 4, 3, id="page cache is not used"
        ),
        pytest.param("0::/a/b", {"a__b": v2(4 * GIB, 1 * GIB)}, 4, 3, id="its own cgroup"),
        pytest.param(
            "0::/a/b",
            {"a__b": v2("max", 1 * GIB), "a": v2(6 * GIB, 4 * GIB)},
            6,
            2,
            id="the slice above it",
        ),
        pytest.param(
            "0::/a/b",
            {"a__b": v2(3 * GIB, 1 * GIB), "a": v2(6 * GIB, 5 * GIB)},
            3,
            1,
            id="the scarcest of both",
        ),
        pytest.param(
            "0::/a", {"a": v2("max", 1 * GIB, high=4 * GIB)}, 4, 3, id="memory.high stalls it"
        ),
        pytest.param("0::/a", {"a": v2("max", 3 * GIB)}, None, 10, id="no limit of its own"),
        pytest.param("0::/a", {"a": v2(1 * GIB, 3 * GIB)}, 1, 0, id="never less than nothing"),
        pytest.param("0::/a", {"a": v2(20 * GIB, 0)}, 20, 10, id="a limit above the machine"),
        pytest.param(
            "4:memory:/a", {"memory__a": v1(4 * GIB, 3 * GIB, cache=2 * GIB)}, 4, 3, id="version 1"
        ),
        pytest.param(
            "4:cpu,memory:/a/b",
            {"memory__a": v1(4 * GIB, 3 * GIB), "memory__a__b": v1(UNLIMITED_V1, 1 * GIB)},
            4,
            1,
            id="version 1, the one above it",
        ),
        pytest.param(
            "4:memory:/docker/1f3a",
            {"memory": v1(4 * GIB, 3 * GIB)},
            4,
            1,
            id="a container that is told the path outside",
        ),
        pytest.param("4:memory:/", {"memory": v1(UNLIMITED_V1, 0)}, None, 10, id="v1, no limit"),
        pytest.param(
            "0::/../other", {"..__other": v2(1, 1)}, None, 10, id="outside of this namespace"
        ),
    ],
)
def test_the_limit_of_every_cgroup_above_counts(machine, line, groups, limit, available):
    machine(line, **groups)

    assert memory.machine() == Machine(
        total_bytes=12 * GIB,
        limit_bytes=None if limit is None else limit * GIB,
        available_bytes=available * GIB,
    )
    assert memory.available_bytes() == available * GIB


def test_without_cgroups_the_machine_counts(machine):
    assert memory.available_bytes() == 10 * GIB


def test_the_operator_s_budget_counts_else_a_share_of_what_is_available(machine):
    assert memory.budget_bytes(2.5) == int(2.5 * GIB)
    assert memory.budget_bytes(None) == 8 * GIB
    assert memory.budget_bytes(None, available=5 * GIB) == 4 * GIB
