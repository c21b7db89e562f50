"""Files that are there completely or not at all, whoever else writes and however full the disk is."""

import os
import resource
import threading
from contextlib import contextmanager

import pytest
import torch

from common.errors import UserError
from common.figures import read_log
from common.files import atomic_file, write_atomically


@contextmanager
def largest_file(size: int):
    """Inside, writing beyond `size` bytes of a file fails as on a full disk. Leave room for what pytest captures."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_written_at_once(tmp_path):
    write_atomically(tmp_path / "a", "née\n")
    assert (tmp_path / "a").read_bytes() == b"n\xc3\xa9e\n"
    write_atomically(str(tmp_path / "a"), b"\xff")
    assert (tmp_path / "a").read_bytes() == b"\xff" and os.listdir(tmp_path) == ["a"]


def test_what_fails_inside_changes_nothing(tmp_path):
    write_atomically(tmp_path / "a", "before")
    for error in (ValueError("no"), RuntimeError("no"), KeyboardInterrupt()):
        with (
            pytest.raises(type(error)),
            atomic_file(tmp_path / "a") as file,
        ):  # as it was raised: no fault of the disk
            file.write(b"half")
            raise error
        assert (tmp_path / "a").read_text() == "before" and os.listdir(tmp_path) == ["a"]


def test_nobody_sees_a_file_that_grows(tmp_path):
    write_atomically(tmp_path / "a", "before")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"after")
        file.flush()
        assert (tmp_path / "a").read_text() == "before"
    assert (tmp_path / "a").read_text() == "after"


def test_a_killed_writer_is_in_nobodys_way(tmp_path):
    for pid in (os.getpid(), 1):
        (tmp_path / f".a.{pid}.partial").write_bytes(b"what a kill left, longer than what comes")
    write_atomically(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_two_writers_at_once(tmp_path):
    """Two processes: one of the two files is there at the end, and never a mixture."""
    contents = [letter * 3_000_000 for letter in (b"a", b"b")]
    children = []
    for content in contents:
        if not (child := os.fork()):
            try:
                for _ in range(5):
                    write_atomically(tmp_path / "x", content)
            finally:
                os._exit(0)
        children.append(child)
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            if (tmp_path / "x").exists():
                seen.add((tmp_path / "x").read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for child in children:
        os.waitpid(child, 0)
    done.set()
    watcher.join()
    assert (
        (tmp_path / "x").read_bytes() in contents
        and seen <= set(contents)
        and os.listdir(tmp_path) == ["x"]
    )


@pytest.mark.parametrize(
    "size", [100, 100_000, 1_000_000, 3_000_000]
)  # bytes, where the disk is full
def test_a_full_disk_is_one_sentence(tmp_path, size):
    """torch.save tells of it in an error of its own."""
    write_atomically(tmp_path / "last.pt", "before")
    for write in (
        lambda file: torch.save({"model": torch.ones(1_000_000)}, file),
        lambda file: file.write(b"x" * 4_000_000),
    ):
        complaint = pytest.raises(UserError, match=r"last\.pt cannot be written .*free some space")
        with largest_file(size), complaint, atomic_file(tmp_path / "last.pt") as file:
            write(file)
        assert (tmp_path / "last.pt").read_text() == "before" and os.listdir(tmp_path) == [
            "last.pt"
        ]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(UserError, match="cannot be written"):
            write_atomically(folder / "a", "x")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{half"])
def test_a_log_that_is_not_there_or_damaged(tmp_path, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="log.jsonl is missing or damaged"):
        read_log(tmp_path)
