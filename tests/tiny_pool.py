"""The tiny random models of traces/smollm2/build_pool.py, for tests with a real engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parent.parent / "traces" / "smollm2"


def script(name: str) -> ModuleType:
    """A script beside the traces, as a module."""
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def build_tiny_pool(folder: Path) -> Path:
    """Write the models ``tiny`` and ``tiny-b`` into the folder, and return it. Needs safetensors and tokenizers."""
    build_pool = script("build_pool")
    build_pool.build(folder, build_pool.tiny_models())
    return folder
