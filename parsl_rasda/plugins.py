"""The extension points: what installed distributions add to what is built in.

Each kind of plug-in is one `PluginGroup`. The specs ask it whether a name exists and its options are right,
the factories let it build. A distribution offers a `Plugin` under an entry point of the group::

    [project.entry-points."parsl_rasda.launchers"]
    flux = "my_package:FLUX"

    class FluxOptions(BaseModel):
        queue: str = "batch"

    FLUX = Plugin(FluxLauncher, FluxOptions)    # FluxLauncher(FluxOptions(queue="batch")) is a Launcher

Entry points are read when a name is asked for that is not built in; nothing is imported before it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from parsl_rasda.diagnostics import diagnostics_in, keys_of, listing, shown, suggestion, unknown_key
from parsl_rasda.errors import Diagnostic, InvalidFileError, Loc

Choice: TypeAlias = str | Mapping[str, JsonValue]  # NAME, or {kind: NAME, option: value, ...}


class NoOptions(BaseModel):
    """The options of what has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Plugin:
    """What an entry point offers.

    Attributes:
        build: Returns the object; called with the options and then with what its kind of plug-in gets.
        options: Model of the options. Unknown keys are mistakes unless it has ``extra="allow"``.
    """

    build: Callable[..., object]
    options: type[BaseModel] = NoOptions


@dataclass(frozen=True)
class PluginGroup:
    """One kind of plug-in.

    Attributes:
        name: The entry-point group.
        key: The setting that chooses one, for errors.
        protocol: ``module:class`` of what a plug-in must be.
        built_in: ``module:plugin`` of those that need no other distribution, by name.
    """

    name: str
    key: Loc
    protocol: str
    built_in: Mapping[str, str] = field(hash=False)

    def names(self) -> tuple[str, ...]:
        """Return every name that can be chosen."""
        return (*self.built_in, *sorted(_offered(self.name).names - self.built_in.keys()))

    def problems(self, choice: Choice, ours: Sequence[str] = ()) -> Iterator[Diagnostic]:
        """Yield what is wrong with a choice: its name, or its options.

        Args:
            choice: A name, or a mapping with ``kind``.
            ours: Keys beside the options that the same mapping may have, for the words.
        """
        options = options_of(choice)
        try:
            plugin = self.plugin(kind_of(choice))
        except InvalidFileError as error:
            place = () if isinstance(choice, str) else ("kind",)
            yield from (each.below(*place) for each in error.mistakes)
            return
        model, known = plugin.options, {*keys_of(plugin.options), *plugin.options.model_fields}
        if model.model_config.get("extra") != "allow":
            for key in options.keys() - known:
                yield unknown_key((key,), (*ours, *keys_of(model)))
            options = {key: value for key, value in options.items() if key in known}
        try:
            model.model_validate(options)
        except ValidationError as error:
            yield from diagnostics_in(error, model)

    def build(self, choice: Choice, *context: object) -> Any:
        """Return what a plug-in builds; Any, because its protocol lies in a layer above.

        Args:
            choice: A name, or a mapping with ``kind``.
            context: What this kind of plug-in gets beside its options.

        Raises:
            InvalidFileError: If there is no such plug-in, its options are wrong, or it builds something else.
        """
        if mistakes := [*self.problems(choice)]:
            raise InvalidFileError([each.below(*self.key) for each in mistakes])
        plugin = self.plugin(kind_of(choice))
        built = plugin.build(plugin.options.model_validate(options_of(choice)), *context)
        protocol = _object_at(self.protocol)
        members = [name for name in dir(protocol) if not name.startswith("_")]
        if lacking := [name for name in members if not hasattr(built, name)]:
            found = f"{kind_of(choice)}, whose {type(built).__name__} has no {listing(lacking)}"
            raise InvalidFileError([Diagnostic(self.key, found, f"a whole {protocol.__name__}")])
        return built

    def plugin(self, kind: str) -> Plugin:
        """Return the plug-in of a name.

        Raises:
            InvalidFileError: If there is none, or it cannot be imported.
        """
        if kind in self.built_in:
            plugin = _object_at(self.built_in[kind])
        elif kind in (offered := _offered(self.name)).names:
            try:
                plugin = offered[kind].load()
            except Exception as error:
                found = f"{kind}, which cannot be imported ({type(error).__name__}: {error})"
                raise _refusal(found, f"another, or {offered[kind].value} repaired") from error
        else:
            names = self.names()
            raise _refusal(shown(kind), listing(names) + suggestion(kind, names))
        if not isinstance(plugin, Plugin):
            raise _refusal(
                f"{kind}, which offers {plugin!r}", "an entry point of a parsl_rasda.plugins.Plugin"
            )
        return plugin


def kind_of(choice: Choice) -> str:
    """Return the name of what is chosen."""
    return choice if isinstance(choice, str) else str(choice.get("kind"))


def options_of(choice: Choice) -> dict[str, JsonValue]:
    """Return the options of what is chosen."""
    return {} if isinstance(choice, str) else {k: v for k, v in choice.items() if k != "kind"}


def _refusal(found: str, allowed: str) -> InvalidFileError:
    return InvalidFileError([Diagnostic((), found, allowed)])


def _object_at(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _offered(group: str) -> EntryPoints:
    return _entry_points(tuple(sys.path), group)


@lru_cache
def _entry_points(_path: tuple[str, ...], group: str) -> EntryPoints:
    """Return what all distributions on this path offer: read once, which takes a tenth of a second."""
    return entry_points(group=group)


# The built-in ones are named here and imported where they are used: nothing imports Parsl or Optuna early.

SCHEDULERS = PluginGroup(
    "parsl_rasda.schedulers",
    ("scheduler",),
    "parsl_rasda.scheduling.base:Scheduler",
    {"rasda": "parsl_rasda.scheduling:RASDA", "asha": "parsl_rasda.scheduling:ASHA"},
)
SEARCHERS = PluginGroup(
    "parsl_rasda.searchers",
    ("searcher",),
    "parsl_rasda.search.base:Searcher",
    {
        "random": "parsl_rasda.search.designs:RANDOM",
        "grid": "parsl_rasda.search.designs:GRID",
        "sobol": "parsl_rasda.search.designs:SOBOL",
        "tpe": "parsl_rasda.search.optuna_searcher:TPE",
        "gp": "parsl_rasda.search.optuna_searcher:GP",
        "cmaes": "parsl_rasda.search.optuna_searcher:CMAES",
        "nsgaii": "parsl_rasda.search.optuna_searcher:NSGAII",
        "list": "parsl_rasda.search.designs:LISTED",
    },
)
GROWTH_POLICIES = PluginGroup(
    "parsl_rasda.growth",
    ("scheduler", "growth"),
    "parsl_rasda.placement.cluster_state:GrowthPolicy",
    {
        "elastic": "parsl_rasda.placement.growth:ELASTIC",
        "strict": "parsl_rasda.placement.growth:STRICT",
        "none": "parsl_rasda.placement.growth:NONE",
    },
)
EARLY_RULES = PluginGroup(
    "parsl_rasda.early",
    ("scheduler", "early"),
    "parsl_rasda.scheduling.early:EarlyRule",
    {"none": "parsl_rasda.scheduling.early:NONE", "curve": "parsl_rasda.scheduling.early:CURVE"},
)
LAUNCHERS = PluginGroup(
    "parsl_rasda.launchers",
    ("mpi_launcher",),
    "parsl_rasda.launch.base:Launcher",
    {
        "hydra": "parsl_rasda.launch.hydra:HYDRA",
        "openmpi": "parsl_rasda.launch.openmpi:OPENMPI",
        "srun": "parsl_rasda.launch.srun:SRUN",
        "process": "parsl_rasda.launch.process:PROCESS",
        "pals": "parsl_rasda.launch.pals:PALS",
        "flux": "parsl_rasda.launch.flux:FLUX",
        "ibrun": "parsl_rasda.launch.ibrun:IBRUN",
    },
)
BACKENDS = PluginGroup(
    "parsl_rasda.backends",
    ("backend",),
    "parsl_rasda.orchestration.backend:Backend",
    {
        "parsl": "parsl_rasda.backends.parsl:PLUGIN",
        "globus": "parsl_rasda.backends.globus:PLUGIN",
    },
)
GROUPS = (SCHEDULERS, SEARCHERS, GROWTH_POLICIES, EARLY_RULES, LAUNCHERS, BACKENDS)
