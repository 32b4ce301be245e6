"""Finished points on disk: whole or absent; and what a point's key depends on."""

import json
import os
import subprocess
import sys

import pytest

from tpplanner.domain.sweep import ColumnKind, PointResult, SweepKind
from tpplanner.errors import OutputError
from tpplanner.io import sweep_key, sweep_table
from tpplanner.io.sweep_parts import FolderParts

SETTINGS = {"model": "m", "gpus": "8xh100-sxm", "isl": 512, "tp": (1, 2), "switches": {"async_sched": True}}


def result(key, **cells):
    return PointResult(key=key, rows=({"tp": 1, "reason": None, **cells}, {"tp": 2, "reason": "weights", **cells}), error=None,
                       wall_s=0.125)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out.parquet.parts"


def test_what_was_kept_is_read_back_bit_for_bit(folder):
    kept = [result("a", ttft_s=0.1 + 0.2, saturated=True), result("b", ttft_s=1e-300, saturated=None)]
    with FolderParts(folder) as parts:
        parts.add(kept)
        parts.add([result("c")])
        parts.add([])
    with FolderParts(folder) as parts:
        assert [key in parts for key in "abcd"] == [True, True, True, False]
        assert [parts.result(key) for key in "ab"] == kept
        assert len(list(folder.iterdir())) == 2
        parts.discard()
    assert not folder.exists()


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data.replace(b"0.125", b"0.126"),
    lambda data: data + b"{}\n", lambda data: b"\xff" + data, lambda data: b"[1]\n" + data, lambda data: b"{}\n",
    lambda data: data.replace(b'"sweep_part": 1', b'"sweep_part": 2'), lambda data: b"[" * 100_000,
])
def test_a_damaged_part_counts_as_absent(folder, damage):
    with FolderParts(folder) as parts:
        parts.add([result("a")])
        parts.add([result("b")])
    path = folder / "a.part"
    path.write_bytes(damage(path.read_bytes()))
    with FolderParts(folder) as parts:
        assert "a" not in parts
        assert "b" in parts
        parts.add([result("a")])
        assert parts.result("a") == result("a")


def test_a_part_that_vanishes_meanwhile_is_one_line(folder):
    with FolderParts(folder) as parts:
        parts.add([result("a")])
        (folder / "a.part").unlink()
        with pytest.raises(OutputError, match="was changed or removed"):
            parts.result("a")


def test_one_sweep_at_a_time(folder):
    with FolderParts(folder):
        again = ("from pathlib import Path; from tpplanner.io.sweep_parts import FolderParts; "
                 f"FolderParts(Path({str(folder)!r})).__enter__()")
        other = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=False)
        assert "another sweep to the same output is running" in other.stderr


def test_what_a_killed_process_left_is_cleared_away_and_other_files_stay(folder):
    folder.mkdir()
    (folder / ".tpplanner-0123.tmp").write_bytes(b"half of a")
    (folder / "notes.txt").write_text("mine")
    with FolderParts(folder) as parts:
        parts.add([result("a")])
        parts.discard()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file.parts").write_text("")
    for path in (tmp_path / "file.parts", tmp_path / "no" / "such.parts"):
        with pytest.raises(OutputError), FolderParts(path):
            pass


def key(settings=SETTINGS, *, kind=SweepKind.SIMULATE, version="1", profiles="p", digest_of=sweep_key.file_digest):
    return sweep_key.point_key(kind, settings, version=version, profiles=profiles, digest_of=digest_of)


def test_a_key_is_of_the_content_whatever_its_order():
    assert key() == key(dict(reversed(SETTINGS.items())))
    others = [key({**SETTINGS, "isl": 513}), key({**SETTINGS, "isl": "512"}), key({**SETTINGS, "seed": 0}), key(version="2"),
              key(profiles="q"), key(kind=SweepKind.RECOMMEND)]
    assert len({key(), *others}) == 7


@pytest.mark.parametrize(("name", "value", "file"), [
    ("trace", "t.csv", "t.csv"), ("tokenizer", "tokenizer.json", "tokenizer.json"), ("isl", "histogram:h.csv", "h.csv"),
    ("model", "config.json", "config.json"), ("model", "folder", "folder/config.json"),
    ("model", "folder", "folder/hf_quant_config.json"), ("engine", "./mine.toml", "mine.toml"),
    ("gpus", "8x./machines/mine", "machines/mine/datasheet.toml"), ("gpus", "./mine.toml:4", "mine.toml"),
    ("gpus", "./mine.toml", "mine.toml"),
])
def test_a_key_follows_the_content_of_the_files_that_are_named(tmp_path, monkeypatch, name, value, file):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("one")
    first = key({**SETTINGS, name: value})
    path.write_text("other")
    assert key({**SETTINGS, name: value}) != first
    path.write_text("one")
    assert key({**SETTINGS, name: value}) == first


def test_profiles_are_known_by_content_wherever_they_lie(tmp_path, monkeypatch):
    packaged = sweep_key.profiles_digest()
    for name in ("a", "b"):
        (tmp_path / name / "mine").mkdir(parents=True)
        (tmp_path / name / "mine" / "datasheet.toml").write_text("x = 1\n")
    found = []
    for name in ("a", "b"):
        monkeypatch.setenv("TPPLANNER_PROFILES", str(tmp_path / name))
        found.append(sweep_key.profiles_digest())
    assert found[0] == found[1] != packaged
    (tmp_path / "b" / "mine" / "datasheet.toml").write_text("x = 2\n")
    assert sweep_key.profiles_digest() != found[1]


def test_a_table_has_its_types_from_the_columns_whatever_the_cells(tmp_path, monkeypatch):
    import pandas as pd

    columns = {"model": ColumnKind.TEXT, "tp": ColumnKind.INTEGER, "ttft_s": ColumnKind.REAL, "saturated": ColumnKind.FLAG}
    empty = dict.fromkeys(columns)
    rows = [empty, {"model": "m", "tp": 2**53 + 1, "ttft_s": 0.25, "saturated": True}, {**empty, "tp": 3}]
    monkeypatch.setattr(sweep_table, "_BATCH_ROWS", 2)
    path = tmp_path / "t.parquet"
    for some in (rows, rows[:1], []):
        path.write_bytes(sweep_table.parquet_table(columns, iter(some), path))
        frame = sweep_table.frame_of(columns, some)
        pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
        assert [str(dtype) for dtype in frame.dtypes] == ["string", "Int64", "float64", "boolean"]
    assert sweep_table.frame_of(columns, rows).tp.tolist()[1:] == [2**53 + 1, 3]


def test_part_files_are_lines_of_json(folder):
    with FolderParts(folder) as parts:
        parts.add([result("a")])
    head, point = map(json.loads, (folder / "a.part").read_text().splitlines())
    assert head["sweep_part"] == 1
    assert point["columns"] == ["tp", "reason"]
    assert os.listdir(folder) == ["a.part"]
