"""``srun`` of Slurm, inside an allocation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from parsl_rasda.launch.base import (
    LaunchCommand,
    LaunchSettings,
    rank_environment,
    ranks_per_node,
    step_name,
)
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement

GpuRequest: TypeAlias = Literal["gres", "gpus-per-node", "none"]


@dataclass(frozen=True, slots=True)
class SrunLauncher:
    """Starts ranks as one job step.

    The step sees all GPUs, memory and cores of its nodes (``--overlap`` without ``--exact``): which
    of them a trial uses is our ledger's decision, and an exact step would be bound to the first free
    cores, the same ones for every trial that overlaps it.

    Source: srun(1).
    """

    name: str = "srun"
    gpus: GpuRequest = "gres"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``srun`` command; ranks fill the nodes in the placement's order."""
        environment = rank_environment(settings)
        files: dict[str, str] = {}
        per_node = ranks_per_node(placement)
        if per_node is None:
            path = str(PurePosixPath(settings.directory) / "hosts.txt")
            hosts = [n.node for n in placement.nodes for _ in n.gpus]
            files[path] = "".join(f"{host}\n" for host in hosts)
            environment["SLURM_HOSTFILE"] = path
            layout: tuple[str, ...] = ("--distribution=arbitrary",)
        else:
            nodes = ",".join(n.node for n in placement.nodes)
            layout = (f"--ntasks-per-node={per_node}", "--distribution=block", f"--nodelist={nodes}")
        # Slurm lets a step run on whose srun was killed; by its name it can be found and cancelled.
        step = step_name(settings.directory)
        argv = (
            # Input to all ranks blocks as soon as one does not read; torn lines come from all writing.
            *("srun", "--unbuffered", "--input=0", "--output=0", "--error=all"),
            *(f"--nodes={len(placement.nodes)}", f"--ntasks={placement.world_size}", *layout),
            *("--overlap", "--mem=0", f"--cpus-per-task={settings.threads_per_rank}", "--cpu-bind=none"),
            *self._request(settings, len(placement.nodes)),
            *((f"--job-name={step}",) if step else ()),
            *("--kill-on-bad-exit=1", "--wait=0"),  # rank 0 may save for long after the others have left
            *settings.options,
            *program,
        )
        lasting = (
            *("srun", "--unbuffered", "--input=none", "--nodes=1", "--ntasks=1", "--nodelist={node}"),
            *("--overlap", "--mem=0", "--cpu-bind=none", *self._request(settings, 1)),
            *("--job-name=parsl-rasda-forkserver", *settings.options),
        )
        return LaunchCommand(argv, environment, files, step, lasting)

    def _request(self, settings: LaunchSettings, nodes: int) -> tuple[str, ...]:
        count = settings.gpus_per_node if settings.has_gpus else 0
        if not count or self.gpus == "none":
            return ()
        if settings.nodes_differ and nodes == 1:
            # What a step asks of each node, Slurm holds against the smallest node of the job.
            return (f"--gpus={count}",)
        return (f"--gres=gpu:{count}",) if self.gpus == "gres" else (f"--gpus-per-node={count}",)


class SrunOptions(BaseModel):
    """The options of ``srun``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: GpuRequest = Field(
        "gres", description="How a step asks for its GPUs; none where nothing hands them out."
    )


SRUN = Plugin(lambda options: SrunLauncher(gpus=options.gpus), SrunOptions)
