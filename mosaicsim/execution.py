"""The ``execution`` section of a scenario: what a real run asks, of which models, on what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from mosaicsim.validation import StrictModel

Share = Annotated[float, Field(ge=0, le=1)]
Timeout = Annotated[float, Field(gt=0, le=1e6)]


class Sampling(StrictModel):
    """How a model's tokens are drawn; in vLLM's names, to SamplingParams."""

    max_tokens: PositiveInt = Field(1024, description="most tokens of an answer, reasoning included")
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="0: the likeliest token")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: all tokens")
    min_p: Share = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    stop: tuple[str, ...] = Field((), description="texts that end an answer")


class ExecutedModel(StrictModel):
    """The model behind an expert or the aggregator, and how it is spoken to."""

    path: str = Field(description="folder with weights and tokenizer, from the scenario's; or a hub name")
    system: str | None = Field(None, description="system message")
    template: str | None = Field(
        None, description="prompt with {question}, {options}, {category}, and {answers} for the aggregator"
    )
    template_file: str | None = Field(None, description="the same in a file")
    sampling: Sampling = Field(default_factory=Sampling)
    engine: dict[str, Any] = Field(
        default_factory=dict, description="vLLM's EngineArgs for this model, as {max_model_len: 4096}"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class ExecutionSection(StrictModel):
    """A real run: questions in, answers out."""

    questions: str = Field(description="JSONL or Parquet with question, options, gold, category")
    models: dict[str, ExecutedModel] = Field(description="every expert's model, and `aggregator`")
    engine: dict[str, Any] = Field(
        default_factory=dict, description="vLLM's EngineArgs of all models, beside the scenario's `engine`"
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: GPUs where there are any")
    cores_per_worker: PositiveInt = Field(1, description="CPU cores a session is pinned to (device cpu)")
    executor: Literal["local", "ray"] = Field(
        "local", description="worker processes of this host, or actors of a Ray cluster"
    )
    ray_address: str | None = Field(None, description="the cluster to join; a new local one by default")
    warm_up: bool = Field(
        False,
        description="each worker starts and closes an engine before the first run, whose loads are then no "
        "slower than later ones",
    )
    start_timeout_s: Timeout = Field(
        1800.0, description="a session that is not ready by then loses its worker"
    )
    silence_timeout_s: Timeout = Field(600.0, description="so does one whose worker says nothing for so long")
    restarts: Annotated[int, Field(ge=0)] = Field(
        8, description="losses of a worker, with no call finished in between, after which it stays away"
    )

    def resolve(self, folder: Path) -> ExecutionSection:
        """The section with its files found from ``folder``; what is no folder there stays a hub name."""
        models = {name: _found(model, folder) for name, model in self.models.items()}
        return self.model_copy(
            update={"questions": str((folder / self.questions).resolve()), "models": models}
        )


def _found(model: ExecutedModel, folder: Path) -> ExecutedModel:
    changed: dict[str, Any] = {}
    local = (folder / model.path).resolve()
    if local.exists() or model.path.startswith((".", "/")):
        changed["path"] = str(local)
    if model.template_file is not None:
        changed["template_file"] = str((folder / model.template_file).resolve())
    return model.model_copy(update=changed)
