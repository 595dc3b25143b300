"""Reading a model's weight files ahead, so that the next engine finds them in the host's memory.

The page cache is the host's, whichever process reads: engines of all its workers gain by it, and nothing is
to be freed. Imported in worker processes only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

KINDS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
"""Weight files in the order in which an engine would rather have them; only the first kind found is read."""

CHUNK_BYTES = 1 << 24

_log = logging.getLogger(__name__)


def weight_files(vllm: Mapping[str, Any]) -> list[Path]:
    """The files that an engine with these arguments (vLLM's EngineArgs) reads; empty where none are known.

    A model by name has to be in the Hugging Face cache already; nothing is downloaded.
    """
    if vllm.get("load_format") == "dummy":
        return []
    path = Path(str(vllm["model"]))
    if path.is_file():
        return [path]
    if not path.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(
                snapshot_download(
                    str(path),
                    revision=vllm.get("revision"),
                    cache_dir=vllm.get("download_dir"),
                    local_files_only=True,
                )
            )
        except (HFValidationError, LocalEntryNotFoundError):
            return []
    return next((found for kind in KINDS if (found := sorted(path.glob(kind)))), [])


class ReadAhead(Thread):
    """Reads a model's files once, in the background; what they hold is thrown away, the kernel keeps it."""

    def __init__(self, vllm: Mapping[str, Any]) -> None:
        """``vllm`` are the arguments of the engine that is to load the model."""
        super().__init__(name="read-ahead", daemon=True)
        self._vllm = vllm
        self._enough = Event()

    def run(self) -> None:
        """Read every file, unless they do not fit into free memory: then they would drive each other out."""
        import psutil

        try:
            files = weight_files(self._vllm)
            if sum(file.stat().st_size for file in files) > psutil.virtual_memory().available:
                return
            buffer = bytearray(CHUNK_BYTES)
            for path in files:
                with path.open("rb", buffering=0) as file:
                    while not self._enough.is_set() and file.readinto(buffer):
                        pass
        except Exception as error:  # a hint that cannot be followed; the engine's own start will say more
            _log.warning("cannot read ahead: %s", error)

    def stop(self) -> None:
        """Read no further; another model is wanted."""
        self._enough.set()
