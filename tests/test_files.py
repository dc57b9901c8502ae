"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgecv.errors import InputError
from edgecv.files import new_folder, sha256, write_file


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["b"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "b") as folder:
            (folder / "x").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with new_folder(tmp_path / "b") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "b" / "x").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_there_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "b"
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_text("")
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists and is not"), new_folder(target):
        pytest.fail("the block must not run")


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="cannot"), new_folder(tmp_path / "f" / "b"):
        pytest.fail("the block must not run")


def test_a_killed_process_leaves_no_target_and_is_cleared_up_after(tmp_path: Path) -> None:
    code = f"""
import time, sys
from edgecv.files import new_folder
with new_folder({str(tmp_path / "b")!r}) as folder:
    (folder / 'half').write_text('x')
    print('ready', flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    left = [p.name for p in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".b.partial-")
    with new_folder(tmp_path / "b"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_another_running_process_writes_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / f".b.partial-{os.getppid()}-xyz"
    theirs.mkdir()
    with new_folder(tmp_path / "b"):
        pass
    assert theirs.is_dir()


def test_of_several_writers_one_wins_and_the_others_are_told(tmp_path: Path) -> None:
    def write(number: int) -> bool:
        try:
            with new_folder(tmp_path / "b") as folder:
                (folder / "who").write_text(str(number))
                (folder / "again").write_text(str(number))
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1
    assert (tmp_path / "b/who").read_text() == (tmp_path / "b/again").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_names_with_pattern_characters_are_cleared_too(tmp_path: Path) -> None:
    left = tmp_path / ".b[1]*.partial-999999999-x"
    left.mkdir()
    with new_folder(tmp_path / "b[1]*"):
        pass
    assert not left.exists()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "old")
    write_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("name", ["missing/f", "folder"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_file(tmp_path / name, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
