"""Tag tables: lookups give what a dict gives, also where hashes collide, in both forms of columns."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._hdf import tag_columns, tag_table
from returnn.datasets._hdf.tag_columns import TagColumns, columns_of_bytes, columns_of_fixed, hash_tags
from returnn.datasets._hdf.tag_table import TagTable
from returnn.errors import DataFileError, UnknownSeqTagError

#: Without surrogates, which are no UTF-8.
TEXTS = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
#: Few different ones, so that there are duplicates; lengths around those of words.
FEW = st.builds(lambda c, n: c * n, st.sampled_from(["a", "b", "ä"]), st.sampled_from([0, 1, 3, 4, 7, 8, 9, 16, 17]))
OF_ONE_LENGTH = st.integers(1, 11).flatmap(
    lambda n: st.lists(
        st.text(alphabet="abé", min_size=n, max_size=n).map(lambda t: t.encode()[:n].decode(errors="ignore"))
    )
)
TAGS = st.one_of(st.lists(st.one_of(TEXTS, FEW), max_size=40), OF_ONE_LENGTH)


def _as_of_now(tags: TagColumns) -> np.ndarray:
    return hash_tags(tags)


def _all_equal(tags: TagColumns) -> np.ndarray:
    return np.zeros(tags.num, dtype=np.uint64)


def _few_different(tags: TagColumns) -> np.ndarray:
    lens = np.diff(tags.bounds(0, tags.num)).astype(np.uint64)
    return (lens % np.uint64(3)) << np.uint64(62)


@pytest.mark.parametrize("hashes", [_as_of_now, _all_equal, _few_different])
@settings(max_examples=60, deadline=None)
@given(tags=TAGS, others=TAGS, odd=st.lists(st.text(alphabet="a\0", max_size=3), max_size=4))
def test_as_a_dict(hashes: object, tags: list[str], others: list[str], odd: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tag_columns, "hash_tags", hashes)
        table = TagTable.from_tags(tags)
        last = {tag: i for i, tag in enumerate(tags)}
        queries = [*others, *tags, *odd]  # with NUL characters, which no corpus has
        assert table.find(queries).tolist() == [last.get(tag, -1) for tag in queries]
        assert table.find(queries).dtype == np.int64
        other = TagTable.from_tags([*others, *tags])
        assert table.find_table(other).tolist() == [last.get(tag, -1) for tag in [*others, *tags]]
        assert table.find_table(table).tolist() == [last[tag] for tag in tags]
        assert table.num_duplicates() == len(tags) - len(last)
        assert table.contained_in([*others, *odd]).tolist() == [tag in others + odd for tag in tags]
        table.forget_index()
        assert table.find(tags).tolist() == [last[tag] for tag in tags]


@settings(max_examples=60, deadline=None)
@given(tags=TAGS, others=TAGS, long_tag=st.integers(0, 12), block_bytes=st.integers(1, 40))
def test_long_tags(tags: list[str], others: list[str], long_tag: int, block_bytes: int) -> None:
    """Tags are hashed and compared in another way from some length on; with few at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tag_columns, "_LONG_TAG", long_tag)
        patch.setattr(tag_columns, "_BLOCK_BYTES", block_bytes)
        table = TagTable.from_tags(tags)
        last = {tag: i for i, tag in enumerate(tags)}
        assert table.find([*others, *tags]).tolist() == [last.get(tag, -1) for tag in [*others, *tags]]
        assert table.num_duplicates() == len(tags) - len(last)


def test_very_long_tags_are_not_gone_through_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    words = tag_columns._words

    def counting(buf: np.ndarray, starts: np.ndarray, lens: np.ndarray) -> np.ndarray:
        steps.append(1)
        return words(buf, starts, lens)

    monkeypatch.setattr(tag_columns, "_words", counting)
    tags = ["x" * 1_000_000 + end for end in "abc"] + ["a", "bc", "c" * 2000]
    assert TagTable.from_tags(tags).find_table(TagTable.from_tags(tags[::-1])).tolist() == [5, 4, 3, 2, 1, 0]
    assert len(steps) < 2000


@settings(max_examples=60, deadline=None)
@given(TAGS, st.data())
def test_texts(tags: list[str], data: st.DataObject) -> None:
    table = TagTable.from_tags(tags)
    assert len(table) == len(tags)
    assert table.to_list() == tags == [table[i] for i in range(len(tags))]
    idxs = data.draw(st.lists(st.integers(0, len(tags) - 1), max_size=10)) if tags else []
    assert table.select(idxs) == [tags[i] for i in idxs]
    assert table.select(np.array(idxs, dtype=np.int64)) == [tags[i] for i in idxs]
    assert table.select(range(0, len(tags), 2)) == tags[::2]
    # The same tags, in another form.
    encoded = [tag.encode() for tag in tags]
    offsets = np.cumsum([0, *map(len, encoded)])
    other = TagTable(b"".join(encoded), offsets)
    assert other.to_list() == tags
    assert table.same_tags(other) and other.same_tags(table)
    assert table.find_table(other).tolist() == table.find(tags).tolist() == other.find_table(table).tolist()
    assert not table.same_tags(TagTable.from_tags([*tags, "x"]))
    with pytest.raises(IndexError):
        table[len(tags)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=9).map(lambda t: t.replace(b"\0", b"x")), max_size=20), max_size=5))
def test_join_of_columns(parts: list[list[bytes]]) -> None:
    joined = TagColumns.join([columns_of_bytes(part) for part in parts])
    every = [tag for part in parts for tag in part]
    bounds = joined.bounds(0, joined.num).tolist()
    assert [joined.buf[a:b].tobytes() for a, b in zip(bounds[:-1], bounds[1:], strict=True)] == every
    if every and len({len(tag) for tag in every}) == 1 and every[0]:
        assert joined.offsets is None
    assert joined.num == len(every)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=20), st.integers(1, 12))
def test_fixed_length_texts_end_at_nul(tags: list[bytes], width: int) -> None:
    values = np.array([tag[:width] for tag in tags], dtype=f"S{width}")
    columns = columns_of_fixed(values)
    expected = columns_of_bytes([tag[:width] for tag in tags])
    assert columns.bounds(0, columns.num).tolist() == expected.bounds(0, expected.num).tolist()
    assert columns.buf.tobytes() == expected.buf.tobytes()


def test_memory_per_tag() -> None:
    assert TagTable.from_tags([f"seq-{i:03}" for i in range(1000)]).columns.nbytes == 7000
    assert TagTable.from_tags([f"seq-{i}" for i in range(1000)]).columns.nbytes == 6890 + 4 * 1001  # offsets of 4 bytes


def test_hashes_tell_similar_tags_apart() -> None:
    tags = [f"{i:020}" for i in range(20_000)] + ["a" * i for i in range(300)]
    hashes = hash_tags(TagTable.from_tags(tags).columns)
    assert len(np.unique(hashes >> np.uint64(20))) == len(tags)


def test_unknown_tag_is_named() -> None:
    with pytest.raises(UnknownSeqTagError, match="dataset 'x', first: 'd'"):
        TagTable.from_tags(["a"]).lookup(["d"], dataset_name="x")


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("bad, which", [(b"\xff", 2), ("ä".encode()[:1], 2), ("ä".encode()[1:], 2)])
def test_tags_must_be_utf8(tmp_path: os.PathLike[str], fixed: bool, bad: bytes, which: int) -> None:
    path = os.path.join(tmp_path, "x.hdf")
    # All together would be valid.
    tags = [b"aaaa", "bbä".encode(), b"bbb" + bad, b"cccc"]
    if bad == "ä".encode()[:1]:
        tags[3] = "ä".encode()[1:] + b"ccc"
    with h5py.File(path, "w") as file:
        file["seqTags"] = np.array(tags, dtype="S" if fixed else h5py.string_dtype())
    with h5py.File(path) as file, pytest.raises(DataFileError, match=rf"Tag {which} in 'seqTags' of HDF file"):
        TagTable.from_hdf([file["seqTags"]], [4])


@pytest.mark.parametrize("fixed", [True, False])
def test_tags_of_several_files(tmp_path: os.PathLike[str], fixed: bool) -> None:
    path = os.path.join(tmp_path, "x.hdf")
    parts = [["a", "b"], ["ccc", "", "ü"], ["d", "e"]]
    with h5py.File(path, "w") as file:
        for i, part in enumerate(parts):
            encoded = [tag.encode() for tag in part]
            file[str(i)] = np.array(encoded, dtype="S4" if fixed else h5py.string_dtype())
    with h5py.File(path) as file:
        table = TagTable.from_hdf([file[str(i)] for i in range(3)], [2, 3, 1])
        assert table.to_list() == ["a", "b", "ccc", "", "ü", "d"]
        assert TagTable.from_hdf([file["1"]], [3], start=1).to_list() == ["", "ü"]


def test_wide_tags_are_read_in_small_blocks(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a fixed size may have much more room than text: the memory does not grow with it."""
    path = os.path.join(tmp_path, "x.hdf")
    tags = [f"tag-{i}" for i in range(50)]
    with h5py.File(path, "w") as file:
        file.create_dataset("seqTags", data=np.array(tags, dtype="S1000"))
    sizes: list[int] = []
    fixed = tag_table.columns_of_fixed

    def measured(values: np.ndarray) -> TagColumns:
        sizes.append(values.nbytes)
        return fixed(values)

    monkeypatch.setattr(tag_table, "columns_of_fixed", measured)
    monkeypatch.setattr(tag_table, "_READ_BYTES", 7500)
    with h5py.File(path) as file:
        table = TagTable.from_hdf([file["seqTags"]], [50])
    assert table.to_list() == tags
    assert max(sizes) == 7000
    assert table.columns.nbytes < 50 * 7 + 51 * 4
