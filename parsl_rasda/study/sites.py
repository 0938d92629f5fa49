"""What a site file declares: a machine reached through a Parsl provider, or through Globus Compute."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import MARK, Plain, listing, mapping_at, refused, shown, suggestion
from parsl_rasda.errors import Diagnostic
from parsl_rasda.plugins import BACKENDS, Choice
from parsl_rasda.study.parsl_site import LOCAL, ParslSiteSpec
from parsl_rasda.study.site_base import Nodes, SiteBase
from parsl_rasda.study.spec import (
    PluginSpec,
    exactly_one,
    matching,
    variant,
)
from parsl_rasda.types import Capabilities

_VARIANTS = ("provider", "endpoint_id", "backend")


def _uuid(value: str) -> str:
    try:
        UUID(value)
    except ValueError:
        raise refused(value, "an id such as 4b116d3c-1703-4f8f-9f6f-39921e5864df") from None
    return value


_UUID = matching("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", "an id of 32 digits")


class GlobusSiteSpec(SiteBase):
    """A machine reached through a Globus Compute endpoint."""

    endpoint_id: Annotated[str, AfterValidator(_uuid), WithJsonSchema(_UUID)] = Field(
        description="Id of the Globus Compute endpoint.", examples=["4b116d3c-1703-4f8f-9f6f-39921e5864df"]
    )
    user_endpoint_config: Mapping[str, JsonValue] = Field(
        default_factory=dict,
        description="Values for the endpoint's template; the same for a whole study.",
        examples=[{"walltime": "02:00:00"}],
    )
    nodes: Nodes = Field(1, description="Nodes of a pilot; the endpoint's nodes_per_block.")

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield what the endpoint decides, and not the controller."""
        yield from super().problems(plain)
        if mapping_at(plain, "pilots").get("walltimes"):
            yield Diagnostic(("pilots", "walltimes"), "walltimes", "none: the endpoint's template has them")
        if plain.get("release_idle_after") is not None:
            allowed = "idle_s in user_endpoint_config: the endpoint gives an idle pilot back itself"
            yield Diagnostic(("release_idle_after",), shown(plain["release_idle_after"]), allowed)

    @property
    def capabilities(self) -> Capabilities:
        """In what it differs from other sites."""
        return Capabilities(sees_run_directory=False, has_control=False)

    @property
    def pilot_identity(self) -> str:
        """An endpoint has one pilot for each set of values of its template."""
        return f"{self.endpoint_id.lower()} {json.dumps(self.user_endpoint_config, sort_keys=True)}"

    @property
    def backend_choice(self) -> Choice:
        """The backend that reaches it."""
        return "globus"

    @property
    def nodes_per_pilot(self) -> int:
        """Nodes of one allocation."""
        return self.nodes


class PluginSiteSpec(SiteBase, PluginSpec):
    """A machine that a plug-in reaches. Keys that are not ours are options of its backend."""

    group = BACKENDS
    chosen_by = "backend"

    backend: str = Field(
        description="The plug-in: the name of an entry point in parsl_rasda.backends.", examples=["flux"]
    )
    nodes: Nodes = Field(1, description="Nodes of a pilot.")

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, without what makes it a site of another kind."""
        others = dict.fromkeys(("provider", "endpoint_id"), False)
        return super().file_form({**schema, "properties": {**schema["properties"], **others}})

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a backend that has a key of its own, or does not exist, and mistakes in its options."""
        backend, built_in = plain.get("backend"), cls.group.built_in
        others = [name for name in cls.group.names() if name not in built_in]
        if backend in others:
            yield from super().problems(plain)
        elif isinstance(backend, str):
            hint = "provider or endpoint_id in its place, or " if backend in built_in else ""
            allowed = f"{hint}a plug-in: {listing(others)}{suggestion(backend, others)}"
            yield Diagnostic(("backend",), shown(backend), allowed)

    @property
    def capabilities(self) -> Capabilities:
        """What the backend's class declares."""
        found = getattr(self.group.plugin(self.backend).build, "capabilities", None)
        return found if isinstance(found, Capabilities) else Capabilities()

    @property
    def backend_choice(self) -> Choice:
        """The backend that reaches it, with its options."""
        return self.choice

    @property
    def nodes_per_pilot(self) -> int:
        """Nodes of one allocation."""
        return self.nodes


class ExecutorSite(SiteBase):
    """Slots behind an executor of a program that has loaded Parsl; its name is the executor's label.

    No file declares one: `for_resume` is what a run directory keeps of it.
    """

    nodes: Nodes = Field(1, description="Nodes of one block.")

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield what only the owner of the executor decides."""
        yield from super().problems(plain)
        if plain.get("pilots", 1) != 1:
            yield Diagnostic(("pilots",), shown(plain["pilots"]), "1: an executor is one pilot")

    @property
    def nodes_per_pilot(self) -> int:
        """Nodes of one block."""
        return self.nodes

    def for_resume(self) -> ParslSiteSpec:
        """Return the site that takes its place where the program is not: this machine."""
        return ParslSiteSpec.model_validate({**self.model_dump(by_alias=True), "provider": {"type": LOCAL}})


def _tag(value: object) -> str | None:
    return variant(value, _VARIANTS)


SiteSpec: TypeAlias = ParslSiteSpec | GlobusSiteSpec | PluginSiteSpec
AnySite: Any = Annotated[
    Annotated[ParslSiteSpec, Tag(MARK + "provider")]
    | Annotated[GlobusSiteSpec, Tag(MARK + "endpoint_id")]
    | Annotated[PluginSiteSpec, Tag(MARK + "backend")],
    Discriminator(_tag),
    BeforeValidator(exactly_one(*_VARIANTS)),
]
