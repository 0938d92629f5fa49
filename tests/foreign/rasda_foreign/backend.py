from pydantic import BaseModel, Field

from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.plugins import Plugin
from parsl_rasda.testing import FakeBackend


class Options(BaseModel):
    decay: float = Field(0.5, gt=0, description="How fast losses fall.")


class EmulatedBackend(FakeBackend):
    """Trains nothing: an epoch ends at once, and its loss is a formula."""

    def __init__(self, options: Options, site, context) -> None:
        curve = lambda order, epoch: {order.metric: 1 / epoch**options.decay}  # noqa: E731
        super().__init__(curve, nodes=site.nodes, gpus_per_node=site.gpus_per_node)
        self._launcher, self._log = build_launcher(site.mpi_launcher), context.directory / "commands.txt"

    def start_job(self, order, placement):
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            print(*self._launcher.command(placement, ("train", order.trial), LaunchSettings()).argv, file=log)
        super().start_job(order, placement)


EMULATED = Plugin(EmulatedBackend, Options)
