"""What is kept on disk is there whole or not at all, found by content, and never more than is allowed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from hftl.errors import UserError
from hftl.train.cache.store import NoRoom, Store, Writer, folder

GB = 10**9


def key(n: int) -> bytes:
    return n.to_bytes(16, "big")


def filled(root: Path, numbers: range, space: str = "space", width: int = 8, limit: int = GB) -> Store:
    """A store that holds a row of `width` floats for each number, all equal to it."""
    store = Store(space, limit, root)
    with store.lock(), store.writer() as writer:
        writer.add([key(n) for n in numbers], [(torch.full((width,), float(n)),) for n in numbers])
    return store


def test_rows_come_back_by_content_whatever_shard_they_lie_in(tmp_path):
    filled(tmp_path, range(10))
    store = filled(tmp_path, range(10, 20))
    wanted = [key(n) for n in (15, 3, 3, 19, 0)]
    assert store.missing([key(5), key(30), key(31), key(30)]) == [1, 2]
    assert Store("other", GB, tmp_path).missing(wanted) == [0, 1, 3, 4]
    reader = store.reader(wanted)
    assert len(reader) == 5
    (found,) = reader.batch([4, 0, 1, 2])
    assert found[:, 0].tolist() == [0, 15, 3, 3]
    with pytest.raises(KeyError):
        store.reader([key(99)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_each_type_comes_back_bit_for_bit(dtype, tmp_path):
    values = (torch.randn(4, 3, 5) * 100).to(dtype)
    store = Store("space", GB, tmp_path)
    with store.writer() as writer:
        writer.add([key(n) for n in range(4)], [(row,) for row in values])
    (found,) = store.reader([key(n) for n in range(4)]).batch([2, 0, 3])
    assert found.dtype == dtype
    assert torch.equal(found, values[[2, 0, 3]])


@pytest.mark.parametrize("left", [False, True])
def test_rows_of_unlike_length_are_padded_with_zeros_on_the_side_asked_for(left, tmp_path):
    rows = [(torch.full((n, 2), float(n)), torch.tensor(n)) for n in (3, 1, 2)]
    store = Store("space", GB, tmp_path)
    with store.writer() as writer:
        writer.add([key(n) for n in range(3)], rows)
    states, numbers = store.reader([key(n) for n in range(3)]).batch([0, 1, 2], left=left)
    assert states.shape == (3, 3, 2)
    assert numbers.tolist() == [3, 1, 2]
    assert states[1, :, 0].tolist() == ([0, 0, 1] if left else [1, 0, 0])
    assert states[2, :, 0].tolist() == ([0, 2, 2] if left else [2, 2, 0])


def test_an_interrupted_writer_publishes_nothing(tmp_path):
    store = Store("space", GB, tmp_path)
    with contextlib.suppress(RuntimeError), store.writer() as writer:
        writer.add([key(1)], [(torch.zeros(3),)])
        raise RuntimeError
    assert store.missing([key(1)]) == [0]
    assert not list(tmp_path.rglob("*.bin"))


SLOW = """
import sys, time, torch
from pathlib import Path
from hftl.train.cache.store import Store
store = Store("space", 10**9, Path(sys.argv[1]))
with store.lock(), store.writer() as writer:
    for n in range(10_000):
        writer.add([n.to_bytes(16, "big")], [(torch.full((1000,), float(n)),)])
        if n == 200:
            print("going", flush=True)
        time.sleep(0.002)
"""


@pytest.mark.launch
def test_after_a_kill_the_next_writer_goes_on_and_nothing_half_done_is_seen(tmp_path):
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert len(list(tmp_path.rglob("*.partial"))) == 1
        assert Store("space", GB, tmp_path).missing([key(0)]) == [0]
    store = filled(tmp_path, range(5))
    assert not list(tmp_path.rglob("*.partial"))
    assert store.missing([key(n) for n in range(6)]) == [5]


def test_a_second_writer_waits_for_the_first(tmp_path, capsys):
    seen = []

    def second() -> None:
        store = Store("space", GB, tmp_path)
        with store.lock():
            seen.append(store.missing([key(1)]))

    store = Store("space", GB, tmp_path)
    with store.lock(), store.writer() as writer:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        assert not seen
        writer.add([key(1)], [(torch.zeros(3),)])
    other.join(10)
    assert seen == [[]], "the second one did not find what the first has computed"
    assert capsys.readouterr().out.count("waiting") == 1


@pytest.mark.parametrize("damage", ["cut", "empty index", "no leaf", "garbage"])
def test_a_damaged_shard_is_dropped_with_a_warning_and_computed_again(damage, tmp_path):
    filled(tmp_path, range(10))
    (leaf,), (index,) = tmp_path.rglob("leaf0.bin"), tmp_path.rglob("index.npz")
    if damage == "cut":
        os.truncate(leaf, 100)
    elif damage == "no leaf":
        leaf.unlink()
    else:
        index.write_bytes(b"" if damage == "empty index" else b"\x80\x04 no numpy file")
    with pytest.warns(UserWarning, match="damaged"):
        assert Store("space", GB, tmp_path).missing([key(3)]) == [0]
    assert not list(tmp_path.rglob("index.npz"))
    assert filled(tmp_path, range(10)).missing([key(3)]) == []


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    for age, space in enumerate(["oldest", "older", "young"]):
        store = filled(tmp_path, range(100), space, width=250)  # 100 kB each
        (shard,) = [path.parent for path in store.path.rglob("index.npz")]
        os.utime(shard, (age + 1, age + 1))
    Store("oldest", GB, tmp_path).reader([key(1)])  # was just used
    filled(tmp_path, range(100), "new", width=250, limit=330_000)
    left = {path.parent.parent.name for path in tmp_path.rglob("index.npz")}
    assert left == {"oldest", "young", "new"}


def test_more_than_is_allowed_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(NoRoom, match="GB"):
        filled(tmp_path, range(100), width=250, limit=50_000)
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_full_disk_is_no_room(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "close", full)
    with pytest.raises(NoRoom, match="disk is full"):
        filled(tmp_path, range(3))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_folder_that_cannot_be_written_is_named_with_a_cure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="HFTL_CACHE"):
        filled(tmp_path / "file", range(3))


def test_the_folder_is_the_users_choice(monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", "/somewhere/else")
    assert folder() == Path("/somewhere/else")
    monkeypatch.delenv("HFTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert folder() == Path("/xdg/hftl")


def test_nothing_added_is_nothing_published(tmp_path):
    store = Store("space", GB, tmp_path)
    with store.lock(), store.writer() as writer:
        writer.add([], [])
    assert not list(tmp_path.rglob("index.npz"))
    assert store.missing([]) == []


def test_a_writer_at_work_keeps_its_files_when_another_clears_up(tmp_path):
    store = Store("space", GB, tmp_path)
    with store.writer() as writer:
        writer.add([key(1)], [(torch.ones(3),)])
        filled(tmp_path, [2], "space")  # takes the lock, which clears away what killed writers have left
        writer.add([key(3)], [(torch.ones(3),)])
    assert store.missing([key(n) for n in (1, 2, 3)]) == []


def test_a_mistake_of_the_caller_is_not_taken_for_one_of_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cat\.png"), Store("space", GB, tmp_path).writer():
        raise FileNotFoundError("cat.png")


def test_nothing_is_published_after_a_row_was_written_by_half(tmp_path, monkeypatch):
    def full(leaf):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store("space", GB, tmp_path)
    with store.lock(), store.writer() as writer:
        writer.add([key(1)], [(torch.ones(3),)])
        monkeypatch.setattr("hftl.train.cache.writer._raw", full)
        with pytest.raises(NoRoom, match="disk is full"):
            writer.add([key(2)], [(torch.ones(3),)])
    assert store.missing([key(1), key(2)]) == [0, 1]
    assert not list(tmp_path.rglob("*.bin"))


def test_rows_of_the_own_space_that_nobody_asks_for_make_room_too(tmp_path):
    (shard,) = [path.parent for path in filled(tmp_path, range(100), width=250).path.rglob("index.npz")]
    os.utime(shard, (1, 1))
    store = filled(tmp_path, range(100, 200), width=250, limit=150_000)
    assert store.missing([key(5), key(105)]) == [0]


def test_rows_in_use_stay_readable_and_are_never_evicted_for_ones_own(tmp_path):
    filled(tmp_path, range(100), width=250)
    store = Store("space", 150_000, tmp_path)
    assert store.missing([key(5)]) == []
    with pytest.raises(NoRoom), store.lock(), store.writer() as writer:
        writer.add([key(n) for n in range(100, 200)], [(torch.zeros(250),)] * 100)
    (shard,) = [path.parent for path in tmp_path.rglob("index.npz")]
    os.utime(shard, (1, 1))
    filled(tmp_path, range(100), "other", width=250, limit=150_000)  # another run needs the room
    assert not shard.exists()
    assert store.reader([key(5)]).batch([0])[0][0, 0] == 5


def test_nothing_is_evicted_where_that_would_not_suffice(tmp_path):
    filled(tmp_path, range(10), "old")
    with pytest.raises(NoRoom):
        filled(tmp_path, range(100), "new", width=250, limit=50_000)
    assert Store("old", GB, tmp_path).missing([key(n) for n in range(10)]) == []


def test_what_is_kept_can_be_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    filled(tmp_path, range(3))

    def refuse(self):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock._acquire", refuse)
    store = Store("space", GB, tmp_path)
    with store.lock():
        assert store.reader([key(2)]).batch([0])[0][0, 0] == 2
    with pytest.raises(UserError, match="HFTL_CACHE"), store.writer():
        pass


@pytest.mark.parametrize("bad", ["short key", "other type", "fewer rows"])
def test_rows_that_do_not_belong_together_are_refused(bad, tmp_path):
    keys = [b"short", key(2)] if bad == "short key" else [key(1), key(2)]
    rows = [(torch.zeros(2),), (torch.zeros(2, dtype=torch.int64 if bad == "other type" else None),)]
    with pytest.raises(ValueError, match="Expected"), Store("space", GB, tmp_path).writer() as writer:
        writer.add(keys, rows[:1] if bad == "fewer rows" else rows)
