"""The `training` block: what a trial runs, and how its batches and its learning rate are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, is_number, refused, shown
from parsl_rasda.errors import Diagnostic, InvalidSettingError
from parsl_rasda.protocol import Training
from parsl_rasda.study.commands import Command
from parsl_rasda.study.spec import (
    IDENTIFIER,
    IDENTIFIER_FORM,
    MOST,
    Count,
    Flag,
    Number,
    Seconds,
    Spec,
    Target,
    or_null,
)
from parsl_rasda.types import JSON, Keep

TRAINING_PLACEHOLDERS = (
    "until",
    "max_t",
    "epoch",
    "checkpoint",
    "report",
    "out",
    "replicas",
    "world_size",
    "batch_size",
    "global_batch_size",
    "seed",
)


def _count_or_name(value: object) -> object:
    count = is_number(value) and isinstance(value, int) and 1 <= value <= MOST
    if count or (isinstance(value, str) and IDENTIFIER.fullmatch(value)):
        return value
    raise refused(value, f"a whole number from 1 to {MOST}, or the name of a search-space parameter")


def _epochs_or_name(value: object) -> object:
    number = is_number(value) and 0 <= value <= MOST
    if number or (isinstance(value, str) and IDENTIFIER.fullmatch(value)):
        return value
    raise refused(value, f"a number of epochs from 0 to {MOST}, or the name of a search-space parameter")


def _or_name(kind: str, least: int) -> WithJsonSchema:
    number = {"type": kind, "minimum": least, "maximum": MOST}
    return WithJsonSchema({"anyOf": [number, {**IDENTIFIER_FORM, "title": "a parameter"}]})


CountOrName = Annotated[int | str, BeforeValidator(_count_or_name), _or_name("integer", 1)]
EpochsOrName = Annotated[float | str, BeforeValidator(_epochs_or_name), _or_name("number", 0)]


class WarmupSpec(Spec):
    """Epochs in which the learning rate rises: a number, or the name of a searched parameter."""

    initial: EpochsOrName = Field(0.0, description="Epochs from 0 to the full rate, at the start.")
    rescale: EpochsOrName = Field(0.0, description="Epochs from the old rate to the new one, after a resize.")


def _off(value: object) -> object:
    return "none" if value is None else value


class KeepSpec(Spec):
    """Whose checkpoints stay, and which of theirs: a word, or a mapping."""

    whose: Keep = Field(Keep.BEST, description="best; survivors: also of those that reached max_t; all.")
    best: Count = Field(1, description="How many of the best trials keep theirs.")
    rungs: Flag = Field(False, description="Whether they keep those of all rungs, not only the last two.")

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Return a word as a mapping."""
        return {"whose": data} if isinstance(data, str) else data

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, or a word."""
        return {"anyOf": [schema["properties"]["whose"], schema]}


LearningRateScaling: TypeAlias = Literal["auto", "linear", "sqrt", "none"]
_SCALINGS = [*get_args(LearningRateScaling)]


class TrainingSpec(Spec):
    """How every trial trains: a Python function that takes a `Trial`, or a command."""

    python: Target | None = Field(None, description="Training function, package.module:function.")
    command: Command | None = Field(
        None,
        description="A script that cannot be changed; {until} {max_t} {epoch} {checkpoint} {report} "
        "{out} {replicas} {world_size} {batch_size} (of a replica) {global_batch_size} (of a step) {seed}, "
        "the searched parameters and the stage's arguments are filled in.",
        examples=["python train.py --lr {lr} --epochs {until} --resume {checkpoint} --out {report}"],
    )
    batch_size: CountOrName = Field(
        32,
        description="Samples per replica and step (`scheduler.batch: constant`: per step; measured: per step "
        "and GPU of a new trial), at most: if the last step would not be full, all are a little smaller; may "
        "be searched.",
    )
    lr_scaling: Annotated[LearningRateScaling, BeforeValidator(_off), or_null({"enum": _SCALINGS})] = Field(
        "auto",
        description="How the rate follows the batch; auto: linear for SGD, square root for Adam's family.",
    )
    warmup: WarmupSpec = Field(default_factory=WarmupSpec, description="Epochs of rising rate.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the forward pass.")
    reduce: Literal["auto", "exact", "ddp"] = Field(
        "auto",
        description="exact: gradients added in one fixed order, the same bits at any world size of the same "
        "hardware, libraries and threads (on GPUs, kernels that add in no fixed order are refused, with auto "
        "warned of); ddp: PyTorch's own, where replicas that share a batch may be computed together; auto: "
        "exact where replicas and world size are powers of two.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="fsdp: each rank holds a part of the model and its optimizer, for models larger than one "
        "GPU; gradients are then added as by ddp.",
    )
    clip_norm: Number | None = Field(None, gt=0, description="Largest norm of the gradient.")
    checkpoint_every: Count = Field(1, description="Epochs between checkpoints; rungs always have one.")
    keep_checkpoints: KeepSpec = Field(
        default_factory=KeepSpec,
        description="Whose checkpoints stay when trials have ended: best; survivors: also of those that "
        "reached max_t; all; or {best: N}, of the N best; {rungs: true}: those of each rung, too. Whoever "
        "may still go on keeps the last two.",
        examples=[{"best": 3}],
    )
    compile: Flag = Field(False, description="Whether the model goes through torch.compile.")
    stall_after: Seconds = Field(
        12.0,
        description="No step for so long [s], and for ten epochs as they are: the ranks have stalled, their "
        "stacks go to the attempt's log, and the trial is tried again.",
    )

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, one of which starts a training."""
        sharded = {"properties": {"sharding": {"const": "fsdp"}}, "required": ["sharding"]}
        wrong = {"reduce": "exact", "precision": "fp16", "compile": True}
        return {
            **schema,
            "oneOf": [{"required": ["python"]}, {"required": ["command"]}],
            "if": sharded,
            "then": {"properties": {key: {"not": {"const": value}} for key, value in wrong.items()}},
        }

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a training without a way to start it, or with two."""
        ways = [k for k in ("python", "command") if plain.get(k) is not None]
        if len(ways) != 1:
            yield Diagnostic(
                (), "python and command" if ways else "neither", "exactly one of python, command"
            )
        if plain.get("sharding") == "fsdp":
            for key, wrong in (("reduce", "exact"), ("precision", "fp16"), ("compile", True)):
                if plain.get(key) == wrong:
                    yield Diagnostic((key,), f"{shown(wrong)}, with sharding: fsdp", "another value")

    def resolve(self, config: Mapping[str, JSON]) -> Training:
        """Return the settings of one trial, with the values that its configuration gives.

        Raises:
            InvalidSettingError: If a parameter that a setting names is missing or of no use there.
        """
        return Training(
            batch_size=int(_value(self.batch_size, config, "batch_size", least=1)),
            lr_scaling=self.lr_scaling,
            warmup_initial=_value(self.warmup.initial, config, "warmup.initial", least=0),
            warmup_rescale=_value(self.warmup.rescale, config, "warmup.rescale", least=0),
            precision=self.precision,
            reduce=self.reduce,
            sharding=self.sharding,
            clip_norm=self.clip_norm,
            checkpoint_every=self.checkpoint_every,
            compile=self.compile,
            stall_after_s=self.stall_after,
        )


def _value(setting: float | str, config: Mapping[str, JSON], key: str, *, least: int) -> float:
    value = config.get(setting) if isinstance(setting, str) else setting
    if not is_number(value) or value < least:
        raise InvalidSettingError(f"training.{key} of trial", value, f"a number of at least {least}")
    return float(value)
