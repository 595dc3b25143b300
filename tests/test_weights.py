"""Which weight files a model has, and that reading ahead leaves them in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest
from engines import needs_vllm

from mosaicsim.executors.weights import ReadAhead, weight_files


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


def test_one_kind_of_weights_is_read(tmp_path: Path) -> None:
    files(tmp_path, "config.json", "pytorch_model.bin")
    assert weight_files({"model": str(tmp_path)}) == [tmp_path / "pytorch_model.bin"]
    shards = files(tmp_path, "model-00001.safetensors", "model-00002.safetensors")
    assert weight_files({"model": str(tmp_path)}) == shards


def test_a_file_is_the_weights(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "model.gguf")
    assert weight_files({"model": str(path)}) == [path]


def test_nothing_is_known_to_read(tmp_path: Path) -> None:
    files(tmp_path, "config.json")
    assert weight_files({"model": str(tmp_path)}) == []
    files(tmp_path, "model.safetensors")
    assert weight_files({"model": str(tmp_path), "load_format": "dummy"}) == []


def cached(path: Path) -> bool:
    """Whether most of a file's pages are in memory, by mincore(2), which reads none."""
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start
    assert not failed
    return sum(page & 1 for page in pages) > len(pages) // 2


def evict(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def on_disk(path: Path, size: int) -> Path:
    """A file of so many bytes, none of them in memory."""
    path.write_bytes(bytes(size))
    evict(path)
    if cached(path):
        pytest.skip("this file system keeps no pages on a disk")
    return path


@pytest.mark.engine
@needs_vllm
def test_what_was_read_ahead_is_in_the_page_cache(tmp_path: Path) -> None:
    path = on_disk(tmp_path / "model.safetensors", 1 << 26)
    stopped = ReadAhead({"model": str(path)})
    stopped.stop()
    stopped.start()
    stopped.join()
    assert not cached(path)
    reading = ReadAhead({"model": str(path)})
    reading.start()
    reading.join()
    assert cached(path)


@pytest.mark.engine
@needs_vllm
def test_what_does_not_fit_into_memory_is_left_on_the_disk(tmp_path: Path) -> None:
    path = on_disk(tmp_path / "model.safetensors", 1 << 22)
    vast = tmp_path / "model-2.safetensors"
    with vast.open("wb") as file:
        file.truncate(1 << 43)
    reading = ReadAhead({"model": str(tmp_path)})
    reading.start()
    reading.join(60)
    assert not reading.is_alive()
    assert not cached(path)


@pytest.mark.engine
@needs_vllm
def test_a_model_by_name_that_is_not_here_is_no_error(tmp_path: Path) -> None:
    assert weight_files({"model": "nobody/has-this-model", "download_dir": str(tmp_path)}) == []
    assert weight_files({"model": "not/a/name", "download_dir": str(tmp_path)}) == []
