"""What a study declares for those who watch it: trackers, and a command that is told of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from pydantic import Field
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.commands import Command, unknown_placeholders
from parsl_rasda.study.spec import Spec, Text

Happening: TypeAlias = Literal["end", "rung", "trouble"]
NOTIFY_PLACEHOLDERS = ("event", "study", "message", "directory")
_OF_WANDB = ("project", "entity", "mode")


class TrackerSpec(Spec):
    """One tool where trials are shown while they train: `tensorboard`, `{mlflow: URI}`, `{wandb: {...}}`."""

    kind: Literal["tensorboard", "mlflow", "wandb"] = Field(description="The tool.", examples=["mlflow"])
    uri: Text | None = Field(
        None,
        description="tensorboard: a folder; mlflow: a tracking URI. Without it, in the run directory.",
        examples=["http://server:5000"],
    )
    project: Text | None = Field(
        None, description="wandb: the project; by default the study's name.", examples=["mine"]
    )
    entity: Text | None = Field(None, description="wandb: whose project it is.", examples=["our_group"])
    mode: Literal["offline", "online"] = Field(
        "offline", description="wandb: offline writes files in the run directory, for `wandb sync`."
    )

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Return ``tensorboard``, ``{mlflow: URI}`` and ``{wandb: {...}}`` as a kind with its options."""
        if isinstance(data, str):
            return {"kind": data}
        if isinstance(data, Mapping) and "kind" not in data and len(data) == 1:
            ((kind, given),) = data.items()
            if given is None:
                return {"kind": kind}
            return {"kind": kind, **given} if isinstance(given, Mapping) else {"kind": kind, "uri": given}
        return data

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, the name alone, or a mapping of the name to what it gets."""
        fields = schema["properties"]
        text = {"type": ["string", "null"]}
        wandb = {"type": ["object", "null"], "properties": {key: fields[key] for key in _OF_WANDB}}
        told = {"additionalProperties": False, "description": f"Its {', '.join(_OF_WANDB)}."}
        given = {
            "tensorboard": {
                **text,
                "description": "A folder; without it, in the run directory.",
                "examples": ["curves"],
            },
            "mlflow": {
                **text,
                "description": "A tracking URI; without it, in the run directory.",
                "examples": ["http://server:5000"],
            },
            "wandb": wandb | told,
        }
        by_name = {
            "type": "object",
            "properties": given,
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        }
        return {"anyOf": [{"enum": [*given]}, by_name, schema]}

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield options of another tool."""
        is_wandb = plain.get("kind") == "wandb"
        for key in ("uri",) if is_wandb else _OF_WANDB:
            if plain.get(key) not in (None, cls.model_fields[key].default):  # it may have no hash
                yield Diagnostic((key,), f"{key}, of {plain.get('kind')}", "an option that this tool has")


class NotifySpec(Spec):
    """A command that is run when something has happened."""

    command: Command = Field(
        description="What is run, without a shell; {event} (end, rung, trouble), {study}, {message} and "
        "{directory} are filled in, and are in RASDA_EVENT, ...",
        examples=[["mail", "-s", "{study}: {message}", "me@example.org"]],
    )
    on: tuple[Happening, ...] = Field(
        ("end", "rung", "trouble"), description="end of a search; first result at a rung; a fault, once each."
    )

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield placeholders that nothing fills in."""
        for problem in unknown_placeholders(plain.get("command"), NOTIFY_PLACEHOLDERS):
            yield problem.below("command")
