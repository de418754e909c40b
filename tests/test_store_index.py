"""Indexes of packs: one that leads out of its pack is refused before libgit2 follows it."""

import shutil
import struct
import subprocess

import pytest

from llmtrace.errors import Trouble
from llmtrace.store.chain import Store
from llmtrace.store.index import check_indexes
from test_store_group import event

T = 1_700_000_000


@pytest.fixture
def packed(tmp_path):
    """The folder of objects of a store, and the index of a pack in it."""
    store = Store.open(tmp_path / "store.git", tmp_path / "keys", create=True, time=T)
    store.append_all([event(number) for number in range(5)])
    objects = tmp_path / "store.git/objects"
    index = max(objects.glob("pack/*.idx"), key=lambda path: path.stat().st_size)
    index.chmod(0o644)
    return objects, index


def offsets_of(data):
    (count,) = struct.unpack_from(">I", data, 8 + 4 * 255)
    return 8 + 1024 + 24 * count, count


def test_sound_indexes_pass(packed):
    objects, index = packed
    check_indexes(objects)
    assert offsets_of(index.read_bytes())[1] == 5 * 4  # record.json, two parts and a tree of each


def test_every_offset_that_leaves_its_pack_is_refused(packed, tmp_path):
    objects, index = packed
    good = index.read_bytes()
    at, count = offsets_of(good)
    end = index.with_suffix(".pack").stat().st_size - 20
    for number in range(count):
        for offset in (0, 11, end, end + 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            place = at + 4 * number
            index.write_bytes(good[:place] + struct.pack(">I", offset) + good[place + 4 :])
            with pytest.raises(Trouble, match="is damaged"):
                Store.open(objects.parent, tmp_path / "keys")
    index.write_bytes(good)
    assert [entry.record.seq for entry in Store.open(objects.parent, tmp_path / "keys").log()]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + bytes(4),
        lambda data: b"\0" + data[1:],
        lambda data: data[:7] + b"\3" + data[8:],
        lambda data: data[:8] + b"\xff" + data[9:],  # fan-out goes down
        lambda data: data[: 8 + 1020] + struct.pack(">I", 1 << 30) + data[8 + 1024 :],
    ],
)
def test_an_index_of_another_shape_is_refused(packed, change):
    objects, index = packed
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(Trouble, match="is damaged"):
        check_indexes(objects)


def test_large_offsets_are_followed(packed):
    """As an index has them for packs beyond 2 GiB; git reads this one as well."""
    objects, index = packed
    data = index.read_bytes()
    at, count = offsets_of(data)
    (first,) = struct.unpack_from(">I", data, at)
    body = data[:at] + struct.pack(">I", 1 << 31) + data[at + 4 : at + 4 * count]
    for far, good in ((first, True), (1 << 40, False)):
        index.write_bytes(body + struct.pack(">Q", far) + data[-40:])
        if good:
            check_indexes(objects)
            listed = ["git", "--git-dir", objects.parent, "show-index"]
            done = subprocess.run(listed, input=index.read_bytes(), capture_output=True, check=True)
            assert f"{first} ".encode() in done.stdout
        else:
            with pytest.raises(Trouble, match="is damaged"):
                check_indexes(objects)


def test_folders_that_lead_to_others_are_followed(packed, tmp_path):
    objects, index = packed
    shutil.copytree(objects, tmp_path / "elsewhere")
    (objects / "info/alternates").write_text("# where else\n../../elsewhere\n")
    check_indexes(objects)
    other = tmp_path / "elsewhere/pack" / index.name
    other.chmod(0o644)
    other.write_bytes(other.read_bytes()[:-1])
    with pytest.raises(Trouble, match="is damaged"):
        check_indexes(objects)
    other.unlink()
    (tmp_path / "elsewhere/info/alternates").write_text(f"{objects}\n")  # a circle
    check_indexes(objects)
    others = [tmp_path / f"other{number}" for number in range(16)]
    (objects / "info/alternates").write_text("".join(f"{path}\n" for path in others))
    with pytest.raises(Trouble, match="leads to more than 16 folders"):
        check_indexes(objects)


def test_an_index_over_many_packs_is_refused_with_the_way_out(packed):
    objects, _ = packed
    git = ["git", "--git-dir", objects.parent]
    subprocess.run([*git, "multi-pack-index", "write"], check=True, capture_output=True)
    with pytest.raises(Trouble, match="multi-pack-index' is not read") as caught:
        check_indexes(objects)
    assert caught.value.hints == (f"rm '{objects / 'pack/multi-pack-index'}'",)
