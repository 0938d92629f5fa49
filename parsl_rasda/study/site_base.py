"""What every site file declares, whatever reaches the machine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    WithJsonSchema,
)

from parsl_rasda.devices import CORES_VARIABLE
from parsl_rasda.diagnostics import Plain, is_number, mapping_at, refused, shown
from parsl_rasda.errors import Diagnostic, Loc
from parsl_rasda.plugins import LAUNCHERS, Choice
from parsl_rasda.protocol import RENDEZVOUS_S
from parsl_rasda.study.containers import ContainerSpec
from parsl_rasda.study.document import AsWritten
from parsl_rasda.study.pilot_counts import MOST_PILOTS, Pilots, most_of
from parsl_rasda.study.spec import (
    Count,
    Flag,
    Label,
    Seconds,
    Spec,
    Text,
    chosen_from,
    matching,
)
from parsl_rasda.types import Capabilities

MOST_GPUS_PER_NODE = 1_024  # or cores, or logical slots
MOST_NODES = 100_000  # of a pilot
MOST_SLOTS = 200_000  # of all pilots of a site together; the largest machines have about 130,000
MOST_THREADS = 4_096

_FACTORS = ("gpus_per_node", "nodes", "pilots")
_CORES = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
Nodes = Annotated[Count, Field(le=MOST_NODES)]


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


_GPUS = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_GPUS_PER_NODE}, {"const": "auto"}]}
_CORES_FORM = matching(_CORES.pattern, "cores such as 0-7 or 0-3,8-11")


class SiteBase(Spec):
    """What every site says about its nodes and how ranks are started there."""

    name: Label = Field("site", description="Name of the site; without it, the file's.")
    gpus_per_node: Annotated[int | Literal["auto"], BeforeValidator(_gpus), WithJsonSchema(_GPUS)] = Field(
        "auto", description="GPUs of a node, or cores where accelerator is cpu; auto: the pilot counts them."
    )
    pilots: Pilots = Field(
        1,
        description="Allocations held at a time, each of `nodes` nodes: a number, or from `min` to `max`.",
        examples=[2, {"min": 1, "max": 4}],
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
        found = (plain.get("gpus_per_node"), plain.get("nodes") or per_block, most_of(plain.get("pilots")))
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
    def most_pilots(self) -> int:
        """Allocations held at a time, at most."""
        return self.pilots if isinstance(self.pilots, int) else self.pilots.max

    @property
    def least_pilots(self) -> int:
        """Allocations asked for at the start."""
        return self.pilots if isinstance(self.pilots, int) else self.pilots.min

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
        return None if self.slots_per_pilot is None else self.most_pilots * self.slots_per_pilot
