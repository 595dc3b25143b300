"""The store: what is written is what is read, and what is not a sound trace is refused in one clear line."""

from __future__ import annotations

import pathlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trace_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.errors import OutputError, TraceError
from mosaicsim.workload import trace as trace_module
from mosaicsim.workload.trace import content_hash, read_trace, write_trace


@pytest.fixture
def stored(tmp_path: pathlib.Path) -> str:
    path = str(tmp_path / "toy.parquet")
    write_trace(path, samples.table(samples.columns()), samples.metadata(notes=("made up",)))
    return path


def rewrite(path: str, change, keep_metadata: bool = True) -> None:
    """Store the file's table again after ``change``, as a foreign tool would."""
    table = pq.read_table(path)
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata if keep_metadata else None), path)


def test_what_is_written_is_read_back(tmp_path: pathlib.Path) -> None:
    values = samples.columns()
    path = tmp_path / "made" / "toy.parquet"
    written = write_trace(path, samples.table(values), samples.metadata(caps={"gemma": 99}))
    found = read_trace(path)
    assert found.table.equals(written.table)
    assert found.metadata == written.metadata
    assert found.metadata.provenance.caps == {"gemma": 99}
    assert found.experts == samples.EXPERTS
    assert found.questions[:2] == ("q0", "q1")
    assert found.of_question("category")[:3] == ("law", "math", "biology")
    np.testing.assert_array_equal(found.ints("output_tokens"), values["output_tokens"])
    assert [p.name for p in path.parent.iterdir()] == ["toy.parquet"]


@settings(max_examples=20, deadline=None)
@given(
    answers=st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=4, max_size=4),
    confidence=st.lists(st.one_of(st.none(), st.floats(0, 1, width=32)), min_size=4, max_size=4),
    correct=st.lists(st.one_of(st.none(), st.booleans()), min_size=4, max_size=4),
)
def test_nullable_columns_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, answers, confidence, correct
) -> None:
    values = samples.columns(n_questions=1, aggregator=False)
    values |= {"answer": answers, "confidence": confidence, "correct": correct}
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    write_trace(path, samples.table(values), samples.metadata(aggregator=False))
    found = pq.read_table(path)
    assert found["answer"].to_pylist() == answers
    assert found["confidence"].to_pylist() == confidence
    assert read_trace(path).table["correct"].to_pylist() == correct


def test_content_hash_knows_values_not_encodings(stored: str, tmp_path: pathlib.Path) -> None:
    table = pq.read_table(stored)
    other = str(tmp_path / "other.parquet")
    pq.write_table(table, other, compression="snappy", row_group_size=7, use_dictionary=False)
    assert read_trace(other).metadata.content_hash == read_trace(stored).metadata.content_hash


@pytest.mark.parametrize("column", ["output_tokens", "answer", "correct", "slot"])
def test_content_hash_sees_every_kind_of_change(column: str) -> None:
    whole = samples.trace().table
    at = whole.schema.get_field_index(column)
    kind = whole.schema.field(column).type
    none = pa.array([None] * len(whole), type=kind)
    changed = whole.set_column(at, column, none)
    if column == "slot":
        changed = whole.set_column(at, column, pa.array([0] * len(whole), type=kind))
    assert content_hash(changed) != content_hash(whole)


def test_a_changed_cell_is_noticed(stored: str) -> None:
    def longer(table: pa.Table) -> pa.Table:
        tokens = table["output_tokens"].to_numpy() + 1
        return table.set_column(6, "output_tokens", pa.array(tokens, pa.int32()))

    rewrite(stored, longer)
    with pytest.raises(TraceError, match=r"toy\.parquet: content hash is .* rows were changed"):
        read_trace(stored)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -1, -9])
def test_a_truncated_file_is_one_line(stored: str, keep: float) -> None:
    data = pathlib.Path(stored).read_bytes()
    end = int(len(data) * keep) if isinstance(keep, float) else keep
    pathlib.Path(stored).write_bytes(data[:end])
    with pytest.raises(TraceError, match=r"toy\.parquet: not a readable Parquet file") as caught:
        read_trace(stored)
    assert "\n" not in str(caught.value)


def test_no_flipped_byte_gets_through(stored: str) -> None:
    data = pathlib.Path(stored).read_bytes()
    broken = pathlib.Path(stored).with_name("broken.parquet")
    sound = read_trace(stored)
    rng = np.random.default_rng(0)
    for at in rng.integers(4, len(data), 150).tolist():
        broken.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with suppress(TraceError):
            assert read_trace(broken).table.equals(sound.table)


def test_missing_file_names_the_nearest(stored: str) -> None:
    with pytest.raises(TraceError, match=r"no such trace file \(did you mean 'toy\.parquet'\?\)"):
        read_trace(stored.replace("toy", "toi"))


def test_a_folder_is_not_a_trace(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match="is a folder"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["answer"]), "column 'answer' is missing"),
        (lambda t: t.append_column("note", t["answer"]), "unknown column 'note'"),
        (
            lambda t: t.rename_columns({"sample": "samples"}),
            r"'sample' is missing \(did you mean 'samples'\?\)",
        ),
        (
            lambda t: t.set_column(5, "prompt_tokens", t["prompt_tokens"].cast(pa.float64())),
            "column 'prompt_tokens' is double, not int32",
        ),
    ],
)
def test_other_columns_are_refused(stored: str, change, message: str) -> None:
    rewrite(stored, change)
    with pytest.raises(TraceError, match=message):
        read_trace(stored)


def test_foreign_parquet_is_told_how_to_become_a_trace(stored: str) -> None:
    rewrite(stored, lambda t: t, keep_metadata=False)
    with pytest.raises(TraceError, match=r"not a mosaicsim trace.*trace import"):
        read_trace(stored)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"mosaicsim.schema_version", b"9", "schema version '9'; this mosaicsim reads 1"),
        (b"mosaicsim.provenance", b"{", "metadata 'mosaicsim.provenance': JSON"),
        (b"mosaicsim.provenance", b'{"caps": {"gemma": "x"}}', "'mosaicsim.provenance': caps.gemma"),
        (b"mosaicsim.content_hash", b"", "metadata says nothing"),
    ],
)
def test_bad_metadata_is_refused(stored: str, key: bytes, value: bytes, message: str) -> None:
    table = pq.read_table(stored)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key: value}), stored)
    with pytest.raises(TraceError, match=message):
        read_trace(stored)


@pytest.mark.parametrize(
    ("limit", "message"),
    [("MAX_ROWS", "claims 200 rows; at most 150"), ("MAX_BYTES", r"claims 0\.0 GiB of rows; at most 0 GiB")],
)
def test_a_file_that_claims_too_much_is_not_decoded(
    stored: str, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    """Constant columns compress to almost nothing: a small file can claim any number of rows."""
    monkeypatch.setattr(trace_module, limit, 150)
    monkeypatch.setattr(trace_module, "_read_rows", lambda path: pytest.fail("rows were decoded"))
    with pytest.raises(TraceError, match=message):
        read_trace(stored)


def test_nothing_is_left_of_a_trace_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    table = samples.table(samples.columns())
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OutputError, match=r"folder\.parquet: cannot write"):
        write_trace(tmp_path / "folder.parquet", table, samples.metadata())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_trace(tmp_path / "file" / "t.parquet", table, samples.metadata())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.parquet"]


def test_an_impossible_trace_is_not_written(tmp_path: pathlib.Path) -> None:
    values = samples.columns()
    values["output_tokens"][3] = -1
    with pytest.raises(TraceError, match="column 'output_tokens', row 4: is -1"):
        write_trace(tmp_path / "t.parquet", samples.table(values), samples.metadata())
    assert not list(tmp_path.iterdir())
