"""What a site file declares of a machine that is reached through a Parsl provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
)
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, is_number, listing, mapping_at, refused, shown
from parsl_rasda.errors import Diagnostic, Loc
from parsl_rasda.study.addresses import Addresses
from parsl_rasda.study.document import AsWritten
from parsl_rasda.study.pilot_counts import WALLTIME, WALLTIME_FORM, Walltimes, most_of
from parsl_rasda.study.site_base import MOST_NODES, SiteBase
from parsl_rasda.study.spec import (
    Identifier,
    Spec,
    matching,
)

# Arguments of a provider that follow from the site, and have one place to be said.
NO_ARGUMENTS = {
    "launcher": "`mpi_launcher` of the site instead, which starts the ranks",
    **dict.fromkeys(
        ("init_blocks", "min_blocks", "max_blocks", "parallelism"),
        "`pilots` of the site instead, the number of allocations",
    ),
}
LOCAL = "LocalProvider"
_TELLING = ("SlurmProvider", "PBSProProvider")
_FIT = ", ".join(
    f"{name}Provider" for name in ("Local", "Slurm", "PBSPro", "Torque", "LSF", "GridEngine", "Condor")
)
_MACHINES = "separate machines without a shared file system, on which checkpoints would be lost"
_UNFIT = {
    "KubernetesProvider": "a pod is one container, not an allocation of nodes with a launcher",
    **dict.fromkeys(("AWSProvider", "GoogleCloudProvider", "AzureProvider"), _MACHINES),
}


class ProviderSpec(Spec):
    """Parsl's execution provider: keys beside `type` are its own arguments, under Parsl's names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    type: Identifier = Field(
        description="LocalProvider, SlurmProvider, PBSProProvider, ... of parsl.providers."
    )

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, with the arguments of Parsl's that are checked here."""
        nodes = {"type": "integer", "minimum": 1, "maximum": MOST_NODES, "description": "Nodes of a pilot."}
        walltime = matching(WALLTIME.pattern, WALLTIME_FORM)
        walltime["description"] = "How long a pilot may last."
        checked = {"nodes_per_block": nodes, "walltime": walltime, **dict.fromkeys(NO_ARGUMENTS, False)}
        fields = {**schema["properties"], **checked}
        fields["type"] = {**fields["type"], "not": {"enum": [*_UNFIT]}, "examples": _FIT.split(", ")}
        return {**schema, "properties": fields}

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield what Parsl or the batch system would misread, and providers that cannot hold a pilot."""
        nodes = plain.get("nodes_per_block", 1)
        kind = str(plain.get("type"))
        if kind in _UNFIT:
            yield Diagnostic(("type",), f"{kind}: {_UNFIT[kind]}", _FIT)
        if kind == "CondorProvider" and nodes != 1:
            yield Diagnostic(("nodes_per_block",), shown(nodes), "1: HTCondor gives no list of several nodes")
        if not (is_number(nodes) and isinstance(nodes, int) and 1 <= nodes <= MOST_NODES):
            yield Diagnostic(("nodes_per_block",), shown(nodes), f"a whole number from 1 to {MOST_NODES}")
        walltime = plain.get("walltime", "0:00:00")
        if not (isinstance(walltime, str) and WALLTIME.fullmatch(walltime)):
            yield Diagnostic(("walltime",), shown(walltime), WALLTIME_FORM)

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """The provider's arguments, for example partition, account, walltime, worker_init."""
        return self.model_extra or {}


def _nodes(value: object) -> object:
    if value is None or value == "auto":
        return value
    if is_number(value) and isinstance(value, int) and 1 <= value <= MOST_NODES:
        return value
    raise refused(value, f"a whole number from 1 to {MOST_NODES}, or auto")


class ParslSiteSpec(SiteBase):
    """A machine that this one reaches through a Parsl provider."""

    provider: ProviderSpec = Field(
        description="Parsl's provider: its type, and all its own arguments, under Parsl's names."
    )
    nodes: Annotated[int | Literal["auto"] | None, BeforeValidator(_nodes)] = Field(
        None,
        description="Nodes of a pilot; without it, nodes_per_block of the provider, or 1. "
        "auto, with LocalProvider: all nodes of the allocation that the controller is in.",
        examples=[4, "auto"],
    )
    address: Addresses | None = Field(
        None,
        description="Where nodes reach this machine: an address, {interface: NAME} for that of a network "
        "interface, or a list of them, of which each node tries all; without it, that of its host name.",
    )
    doctor: Mapping[str, JsonValue] = Field(
        default_factory=dict,
        description="The provider's arguments that differ for `doctor`'s small pilot, for example queue.",
    )
    walltimes: Walltimes = Field(
        (),
        description="Walltimes of its pilots, one after another: of several pilots, short ones often start "
        "sooner than long ones. Without it, all have the provider's.",
    )
    controller: Mapping[str, JsonValue] = Field(
        default_factory=dict,
        description="The provider's arguments that differ for the job of a controller (`submit`), for "
        "example partition and walltime.",
        examples=[{"partition": "shared", "walltime": "24:00:00"}],
    )

    _nodes_here: int = PrivateAttr(default=1)

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield two different numbers of nodes, and several pilots that would be the same machine."""
        yield from super().problems(plain)
        nodes, per_block = plain.get("nodes"), mapping_at(plain, "provider").get("nodes_per_block")
        if nodes is not None and per_block is not None and nodes != per_block:
            yield Diagnostic(
                ("nodes",), f"{shown(nodes)}, but nodes_per_block is {shown(per_block)}", "one of them"
            )
        cores, gpus = plain.get("cores_of_gpu"), plain.get("gpus_per_node")
        if isinstance(cores, list) and cores and isinstance(gpus, int) and len(cores) != gpus:
            yield Diagnostic(
                ("cores_of_gpu",), f"cores of {len(cores)} GPUs", f"of {gpus}, as gpus_per_node says"
            )
        pilots, accelerator = most_of(plain.get("pilots", 1)), plain.get("accelerator", "cuda")
        is_local = mapping_at(plain, "provider").get("type") == LOCAL
        if is_local and isinstance(pilots, int) and pilots > 1 and accelerator != "none":
            held = "cores" if accelerator == "cpu" else "GPUs"
            found = f"{pilots} with {LOCAL}, each of which would hold the same {held} of this machine"
            yield Diagnostic(
                ("pilots",), found, "1; more with accelerator: none, whose slots are only logical"
            )
        if nodes == "auto" and not is_local:
            allowed = f"a number: only {LOCAL} finds an allocation that is there already"
            yield Diagnostic(("nodes",), "auto", allowed)
        kind = mapping_at(plain, "provider").get("type")
        both = {("walltimes",): plain, ("pilots", "walltimes"): mapping_at(plain, "pilots")}
        told = [place for place, block in both.items() if block.get("walltimes")]
        for place in told if kind not in _TELLING else told[1:]:
            allowed = f"only with {listing(_TELLING)}, which tell a pilot its end, and only once"
            yield Diagnostic(place, f"walltimes with {shown(kind)}", allowed)
        controller = mapping_at(plain, "controller")
        for mistake in ProviderSpec.problems({**mapping_at(plain, "provider"), **controller}):
            if mistake.loc[0] in controller:
                yield Diagnostic(("controller", *mistake.loc), mistake.found, mistake.allowed)

    @property
    def is_local(self) -> bool:
        """Whether its pilots are this machine, or the allocation that it stands in."""
        return self.provider.type == LOCAL

    @property
    def nodes_per_pilot(self) -> int:
        """Nodes of one allocation."""
        if self.nodes == "auto":
            return self._nodes_here
        found = self.provider.options.get("nodes_per_block", 1)
        return self.nodes or (found if isinstance(found, int) else 1)

    @property
    def takes_all_nodes(self) -> bool:
        """Whether its pilot is the whole allocation that the controller is in."""
        return self.nodes == "auto"

    @property
    def leaves_nodes_open(self) -> bool:
        """Whether the file says nothing of the nodes of its pilot, so that one is taken."""
        return self.nodes is None and "nodes_per_block" not in self.provider.options

    def for_pilot(self, number: int) -> Self:
        """Return the site as its n-th pilot at a time is asked for, counted from 0: with its walltime."""
        of_pilots = () if isinstance(self.pilots, int) else self.pilots.walltimes
        walltimes = of_pilots or self.walltimes
        if not walltimes:
            return self
        walltime = walltimes[number % len(walltimes)]
        provider = {**self.provider.model_dump(), "walltime": walltime}
        site = self.model_validate({**self.model_dump(by_alias=True), "provider": provider})
        return site.as_written(
            {loc: text for loc, text in self.written.items() if loc != ("provider", "walltime")}
        )

    def in_allocation(self, nodes: int) -> Self:
        """Return the site, which from now on knows for how many nodes ``nodes: auto`` stands."""
        self._nodes_here = nodes
        return self

    def _trial(self, nodes: int, walltime: str) -> dict[str, object]:
        small = {"nodes_per_block": min(nodes, self.nodes_per_pilot), "walltime": walltime}
        provider = self.provider.model_dump()
        changed = {key: value for key, value in small.items() if key in provider}
        return {"provider": {**provider, **changed, **self.doctor}, "walltimes": ()}

    def _trial_written(self) -> Iterator[tuple[Loc, AsWritten]]:
        for loc, text in self.written.items():
            yield loc, text
            if loc[0] == "doctor":
                yield ("provider", *loc[1:]), text
