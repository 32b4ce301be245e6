import os
import stat
from pathlib import Path

import pytest

from tpplanner.errors import OutputError
from tpplanner.io import files
from tpplanner.io.files import OutputFolder, check_writable, write_bytes_whole, write_text_whole


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "plan.json"


def test_writes_text_in_utf8_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = write_text_whole(tmp_path / "plan.json", "tok/s: ≥ 4\n", overwrite=False)
    assert path.read_bytes() == "tok/s: ≥ 4\n".encode()
    assert listing(tmp_path) == ["plan.json"]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = write_bytes_whole(tmp_path / "a", b"", overwrite=False)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_refuses_to_overwrite_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(OutputError, match="already exists"):
        write_text_whole(path, "new", overwrite=False)
    assert path.read_text() == "old"
    write_text_whole(path, "new", overwrite=True)
    assert path.read_text() == "new"


def test_a_link_survives_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text_whole(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p / "missing" / "plan.json",
        lambda p: p,
        below_a_file,
        lambda p: Path("/dev/null"),
        lambda p: p / ("x" * 300),
        lambda p: Path("a\0b"),
    ],
)
def test_places_that_cannot_be_written_give_one_line(tmp_path: Path, make) -> None:
    path = make(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(OutputError) as caught:
        write_text_whole(path, "new", overwrite=True)
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == before


def test_check_writable_writes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "plan.json", overwrite=False)
    assert listing(tmp_path) == []
    with pytest.raises(OutputError, match="does not exist"):
        check_writable(tmp_path / "no" / "plan.json", overwrite=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="not writable"):
            write_text_whole(tmp_path / "plan.json", "", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


def test_permission_is_asked_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        write_text_whole(tmp_path / "plan.json", "", overwrite=False)
    with pytest.raises(OutputError, match="not writable"):
        OutputFolder(path=tmp_path / "new").check(["a"])


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    (tmp_path / "plan.json").write_text("old")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OutputError):
        write_text_whole(tmp_path / "plan.json", "new", overwrite=True)
    assert (tmp_path / "plan.json").read_text() == "old"
    assert listing(tmp_path) == ["plan.json"]


def test_folder_is_created_and_filled(tmp_path: Path) -> None:
    folder = OutputFolder(path=tmp_path / "out")
    folder.check(["a.txt", "b.png"])
    assert listing(tmp_path) == []
    paths = folder.write({"a.txt": "text", "b.png": b"\x89PNG"})
    assert paths == (tmp_path / "out" / "a.txt", tmp_path / "out" / "b.png")
    assert listing(tmp_path / "out") == ["a.txt", "b.png"]


def test_all_targets_are_checked_before_any_is_written(tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("old")
    with pytest.raises(OutputError, match=r"z\.txt already exists; nothing was written"):
        OutputFolder(path=tmp_path).write({"a.txt": "new", "z.txt": "new"})
    assert listing(tmp_path) == ["z.txt"]
    OutputFolder(path=tmp_path, overwrite=True).write({"a.txt": "new", "z.txt": "new"})
    assert [(tmp_path / name).read_text() for name in ("a.txt", "z.txt")] == ["new", "new"]


def test_a_folder_in_the_way_of_a_file_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        OutputFolder(path=tmp_path, overwrite=True).write({"a": "x", "b": "y"})
    assert listing(tmp_path) == ["b"]


def test_a_failure_in_the_second_file_leaves_neither_nor_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([None, KeyboardInterrupt()])

    def fail_second(_: int) -> None:
        failure = next(calls)
        if failure is not None:
            raise failure

    monkeypatch.setattr(files.os, "fsync", fail_second)
    with pytest.raises(KeyboardInterrupt):
        OutputFolder(path=tmp_path / "out").write({"a": "x", "b": "y"})
    assert listing(tmp_path) == []


def test_interrupted_while_moving_leaves_complete_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def move(source: Path, target: Path) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", move)
    with pytest.raises(KeyboardInterrupt):
        OutputFolder(path=tmp_path / "out").write({"a": "whole", "b": "whole"})
    assert listing(tmp_path / "out") == ["a"]
    assert (tmp_path / "out" / "a").read_text() == "whole"


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".", "..", "/etc/passwd"])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="plain name"):
        OutputFolder(path=tmp_path / "out").write({name: "x"})
    assert listing(tmp_path) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is no folder"):
        OutputFolder(path=tmp_path / "out").write({"a": "x"})
    with pytest.raises(OutputError, match="does not exist"):
        OutputFolder(path=tmp_path / "no" / "out").write({"a": "x"})
