"""What a site file declares: a machine reached through a Parsl provider, or through Globus Compute."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    Tag,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.devices import CORES_VARIABLE
from parsl_rasda.diagnostics import MARK, Plain, is_number, listing, mapping_at, refused, shown, suggestion
from parsl_rasda.errors import Diagnostic, Loc
from parsl_rasda.plugins import BACKENDS, LAUNCHERS, Choice
from parsl_rasda.protocol import RENDEZVOUS_S
from parsl_rasda.study.addresses import Addresses
from parsl_rasda.study.containers import ContainerSpec
from parsl_rasda.study.document import AsWritten
from parsl_rasda.study.spec import (
    Count,
    Flag,
    Identifier,
    Label,
    PluginSpec,
    Seconds,
    Spec,
    Text,
    chosen_from,
    exactly_one,
    matching,
    variant,
)
from parsl_rasda.types import Capabilities

MOST_GPUS_PER_NODE = 1_024  # or cores, or logical slots
MOST_NODES = 100_000  # of a pilot
MOST_PILOTS = 1_000
MOST_SLOTS = 200_000  # of all pilots of a site together; the largest machines have about 130,000
MOST_THREADS = 4_096

_FACTORS = ("gpus_per_node", "nodes", "pilots")
# Arguments of a provider that follow from the site, and have one place to be said.
NO_ARGUMENTS = {
    "launcher": "`mpi_launcher` of the site instead, which starts the ranks",
    **dict.fromkeys(
        ("init_blocks", "min_blocks", "max_blocks", "parallelism"),
        "`pilots` of the site instead, the number of allocations",
    ),
}
_WALLTIME = re.compile(r"[0-9]{1,4}:[0-5][0-9]:[0-5][0-9]")
_CORES = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_VARIANTS = ("provider", "endpoint_id", "backend")
_LOCAL = "LocalProvider"
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
        walltime = matching(_WALLTIME.pattern, "HH:MM:SS, for example 01:30:00")
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
        if not (isinstance(walltime, str) and _WALLTIME.fullmatch(walltime)):
            yield Diagnostic(("walltime",), shown(walltime), "HH:MM:SS, for example 01:30:00")

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """The provider's arguments, for example partition, account, walltime, worker_init."""
        return self.model_extra or {}


Nodes = Annotated[Count, Field(le=MOST_NODES)]


def _nodes(value: object) -> object:
    if value is None or value == "auto":
        return value
    if is_number(value) and isinstance(value, int) and 1 <= value <= MOST_NODES:
        return value
    raise refused(value, f"a whole number from 1 to {MOST_NODES}, or auto")


def _gpus(value: object) -> object:
    if value == "auto" or (is_number(value) and isinstance(value, int) and 1 <= value <= MOST_GPUS_PER_NODE):
        return value
    raise refused(value, f"a whole number from 1 to {MOST_GPUS_PER_NODE}, or auto")


def _cores(value: str) -> str:
    parts = value.split(",") if _CORES.fullmatch(value) else []
    ranges = [[int(core) for core in part.split("-")] for part in parts]
    if not ranges or any(cores[0] > cores[-1] for cores in ranges):
        raise refused(value, "cores such as 0-7 or 0-3,8-11")
    return value


def _walltime(value: str) -> str:
    if not _WALLTIME.fullmatch(value):
        raise refused(value, "HH:MM:SS, for example 01:30:00")
    return value


def _uuid(value: str) -> str:
    try:
        UUID(value)
    except ValueError:
        raise refused(value, "an id such as 4b116d3c-1703-4f8f-9f6f-39921e5864df") from None
    return value


_GPUS = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_GPUS_PER_NODE}, {"const": "auto"}]}
_CORES_FORM = matching(_CORES.pattern, "cores such as 0-7 or 0-3,8-11")
_UUID = matching("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", "an id of 32 digits")


class SiteBase(Spec):
    """What every site says about its nodes and how ranks are started there."""

    name: Label = Field("site", description="Name of the site; without it, the file's.")
    gpus_per_node: Annotated[int | Literal["auto"], BeforeValidator(_gpus), WithJsonSchema(_GPUS)] = Field(
        "auto", description="GPUs of a node, or cores where accelerator is cpu; auto: the pilot counts them."
    )
    pilots: Annotated[Count, Field(le=MOST_PILOTS)] = Field(
        1, description="Allocations held at a time, each of `nodes` nodes."
    )
    mpi_launcher: Annotated[Choice, chosen_from(LAUNCHERS)] = Field(
        "hydra",
        description="hydra (MPICH, Intel MPI), openmpi, srun, process (one process per trial, whatever its "
        "width), pals (Cray), flux, ibrun (TACC), or a plug-in, with options as {kind: NAME, option: value}; "
        "srun has gpus: gres, gpus-per-node or none; hydra, openmpi and pals have command: NAME.",
    )
    launcher_options: tuple[Text, ...] = Field((), description="Words to add to the launcher's command.")
    accelerator: Literal["cuda", "rocm", "xpu", "cpu", "none"] = Field(
        "cuda", description="What a slot is; none: purely logical, for emulation."
    )
    threads_per_rank: Annotated[Count, Field(le=MOST_THREADS)] = Field(
        1, description="Threads of a rank's arithmetic."
    )
    cores_of_gpu: tuple[Annotated[str, AfterValidator(_cores), WithJsonSchema(_CORES_FORM)], ...] = Field(
        (), description="Cores next to each GPU of a node, as 0-7 or 0-3,8-11: its rank keeps to them."
    )
    environment: Mapping[Text, Text] = Field(
        default_factory=dict,
        description="Variables of every rank; numbers go in quotes.",
        examples=[{"NCCL_DEBUG": "WARN"}],
    )
    python: Text | None = Field(
        None,
        description="Python there; without it, that of the pilot.",
        examples=["/home/me/venv/bin/python"],
    )
    container: ContainerSpec | None = Field(
        None, description="The container in which ranks run; their Python is container.python."
    )
    work_dir: Text | None = Field(None, description="Folder for checkpoints that all nodes of the site see.")
    warm_start: Flag = Field(
        True,
        description="Fork ranks from a process that has torch loaded; plain starts where that cannot work.",
    )
    checkpoint_margin_s: Seconds = Field(
        120.0,
        alias="checkpoint_margin",
        description="How long trials may take to save and leave [s], before the walltime ends or when told "
        "to: more than a training step, a validation and a checkpoint take together.",
    )
    rendezvous_s: Annotated[Seconds, Field(gt=0)] = Field(
        RENDEZVOUS_S,
        alias="rendezvous",
        description="How long ranks of a trial may take to meet [s]; a tenth of a second more for each.",
    )
    release_idle_after_s: Seconds | None = Field(
        None,
        alias="release_idle_after",
        description="A pilot without work is given back after this long [s].",
        examples=[600],
    )
    heartbeat_threshold_s: Annotated[Seconds, Field(gt=0)] = Field(
        30.0, alias="heartbeat_threshold", description="Silence after which a pilot counts as lost [s]."
    )

    _written: Mapping[Loc, AsWritten] = PrivateAttr(default_factory=dict)

    @property
    def written(self) -> Mapping[Loc, AsWritten]:
        """The values that had variables in them, by their place, as the file has them."""
        return self._written

    def as_written(self, written: Mapping[Loc, AsWritten]) -> Self:
        """Return the site, which from now on knows how its file has these values.

        Args:
            written: By place in the file, where a key may be spelled in two ways.
        """
        keys = {name: field.alias or name for name, field in type(self).model_fields.items()}
        self._written = {(keys.get(str(loc[0]), loc[0]), *loc[1:]): text for loc, text in written.items()}
        return self

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield more slots than any machine has, and variables that no process can have."""
        yield from super().problems(plain)
        per_block = mapping_at(plain, "provider").get("nodes_per_block")
        found = (plain.get("gpus_per_node"), plain.get("nodes") or per_block, plain.get("pilots"))
        sizes = zip(_FACTORS, found, (MOST_GPUS_PER_NODE, MOST_NODES, MOST_PILOTS), strict=True)
        counts = {key: n for key, n, most in sizes if is_number(n) and 1 <= n <= most}
        if (slots := math.prod(counts.values())) > MOST_SLOTS:
            key = max(counts, key=lambda each: counts[each])
            place = (key,) if plain.get(key) else ("provider", "nodes_per_block")
            asked = f"{shown(counts[key])}, which makes {shown(slots)} slots in all"
            yield Diagnostic(place, asked, f"at most {MOST_SLOTS} slots: {' x '.join(_FACTORS)}")
        if plain.get("container") is not None and plain.get("python") is not None:
            allowed = "none: container.python is that of the ranks"
            yield Diagnostic(("python",), shown(plain["python"]), allowed)
        launcher = plain.get("mpi_launcher", "hydra")
        launcher = launcher.get("kind") if isinstance(launcher, Mapping) else launcher
        if mapping_at(plain, "container").get("runtime") == "srun" and launcher != "srun":
            allowed = "srun, which enters the container: container.runtime is srun"
            yield Diagnostic(("mpi_launcher",), shown(launcher), allowed)
        for name in mapping_at(plain, "environment"):
            if not name or "=" in name:
                yield Diagnostic(("environment", name), shown(name), "the name of a variable")

    @property
    def rank_environment(self) -> Mapping[str, str]:
        """The variables of every rank, with those by which it finds its cores."""
        cores = {CORES_VARIABLE: " ".join(self.cores_of_gpu)} if self.cores_of_gpu else {}
        return {**cores, **self.environment}

    @property
    def nodes_per_pilot(self) -> int:
        """Nodes of one allocation."""
        raise NotImplementedError

    @property
    def capabilities(self) -> Capabilities:
        """In what it differs from other sites."""
        return Capabilities()

    @property
    def backend_choice(self) -> Choice:
        """The backend that reaches it, with its options."""
        return "parsl"

    @property
    def pilot_identity(self) -> str:
        """What two sites have in common that are one pilot; empty where each asks for pilots of its own."""
        return ""

    @property
    def is_local(self) -> bool:
        """Whether its pilots are this machine, or the allocation that it stands in."""
        return False

    @property
    def takes_all_nodes(self) -> bool:
        """Whether its pilot is the whole allocation that the controller is in."""
        return False

    def for_trial(self, nodes: int, walltime: str) -> Self:
        """Return the site with one pilot of at most so many nodes: for `doctor`, and it starts sooner.

        Args:
            nodes: At most.
            walltime: ``HH:MM:SS``, where the site file has one.
        """
        changes = {"pilots": 1, "nodes": min(nodes, self.nodes_per_pilot), **self._trial(nodes, walltime)}
        site = self.model_validate({**self.model_dump(by_alias=True), **changes})
        return site.as_written(
            {loc: text for loc, text in self._trial_written() if loc[0] not in {"pilots", "nodes"}}
        )

    def _trial_written(self) -> Iterator[tuple[Loc, AsWritten]]:
        """Yield what a trial leaves as the file has it."""
        yield from self.written.items()

    def _trial(self, nodes: int, walltime: str) -> dict[str, object]:
        """Return what else a trial changes."""
        return {}

    @property
    def slots_per_pilot(self) -> int | None:
        """GPUs of one allocation, or None where the pilot counts them itself."""
        if self.gpus_per_node == "auto":
            return None
        return self.nodes_per_pilot * self.gpus_per_node

    @property
    def slots(self) -> int | None:
        """GPUs of all allocations together, or None where the pilots count them themselves."""
        return None if self.slots_per_pilot is None else self.pilots * self.slots_per_pilot


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
    walltimes: tuple[Annotated[str, AfterValidator(_walltime)], ...] = Field(
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
        pilots, accelerator = plain.get("pilots", 1), plain.get("accelerator", "cuda")
        is_local = mapping_at(plain, "provider").get("type") == _LOCAL
        if is_local and isinstance(pilots, int) and pilots > 1 and accelerator != "none":
            held = "cores" if accelerator == "cpu" else "GPUs"
            found = f"{pilots} with {_LOCAL}, each of which would hold the same {held} of this machine"
            yield Diagnostic(
                ("pilots",), found, "1; more with accelerator: none, whose slots are only logical"
            )
        if nodes == "auto" and not is_local:
            allowed = f"a number: only {_LOCAL} finds an allocation that is there already"
            yield Diagnostic(("nodes",), "auto", allowed)
        kind = mapping_at(plain, "provider").get("type")
        if plain.get("walltimes") and kind not in _TELLING:
            found = f"walltimes with {shown(kind)}"
            yield Diagnostic(
                ("walltimes",), found, f"only with {listing(_TELLING)}, which tell a pilot its end"
            )
        controller = mapping_at(plain, "controller")
        for mistake in ProviderSpec.problems({**mapping_at(plain, "provider"), **controller}):
            if mistake.loc[0] in controller:
                yield Diagnostic(("controller", *mistake.loc), mistake.found, mistake.allowed)

    @property
    def is_local(self) -> bool:
        """Whether its pilots are this machine, or the allocation that it stands in."""
        return self.provider.type == _LOCAL

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
        if not self.walltimes:
            return self
        walltime = self.walltimes[number % len(self.walltimes)]
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
        return ParslSiteSpec.model_validate({**self.model_dump(by_alias=True), "provider": {"type": _LOCAL}})


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
