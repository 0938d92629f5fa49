"""What a site file declares of the container in which its ranks run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from parsl_rasda.diagnostics import Plain, refused, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import Spec, Text

_MOST_PARTS = 3  # of a bind: source, destination, options


def _bind(value: str) -> str:
    parts = value.split(":")
    if len(parts) > _MOST_PARTS or not all(part.startswith("/") for part in parts[:2]):
        raise refused(value, "/FOLDER, /FOLDER:/INSIDE or /FOLDER:/INSIDE:ro")
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise refused(value, "a word")
    return value


class ContainerSpec(Spec):
    """The container of a site's ranks, their fork servers and what looks after these.

    Parsl's workers, stages and the controller stay outside.
    """

    runtime: Literal["apptainer", "singularity", "sarus", "podman-hpc", "enroot", "srun"] = Field(
        description="What starts it; srun: options of srun's own, of pyxis (--container-image) or, for an "
        "image that ends in .toml, of the container engine of CSCS (--environment)."
    )
    image: Annotated[Text, AfterValidator(_not_empty)] = Field(
        description="The image, as the runtime names it; it has parsl_rasda and torch."
    )
    binds: tuple[Annotated[Text, AfterValidator(_bind)], ...] = Field(
        (),
        description="Folders to see inside, as /FOLDER, /FOLDER:/INSIDE or /FOLDER:/INSIDE:ro. The run's "
        "directory, the study's code and /tmp are there without being named.",
    )
    python: Annotated[Text, AfterValidator(_not_empty)] = Field("python3", description="Python inside.")
    options: tuple[Text, ...] = Field((), description="Words to add to the runtime's, before the image.")

    @property
    def is_of_srun(self) -> bool:
        """Whether srun itself enters the container, so that its words go among srun's options."""
        return self.runtime == "srun"

    @property
    def has_own_mounts(self) -> bool:
        """Whether a file of the container engine says what is mounted, and no option can."""
        return self.is_of_srun and self.image.endswith(".toml")

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield binds that nobody would make."""
        is_toml = plain.get("runtime") == "srun" and str(plain.get("image")).endswith(".toml")
        if is_toml and plain.get("binds"):
            allowed = "none: `mounts` in the .toml file, which must have the run's directory, too"
            yield Diagnostic(("binds",), shown(plain["binds"]), allowed)
