"""Searchers that learn: Optuna's TPE, Gaussian process, CMA-ES and NSGA-II samplers.

One in-memory study, asked and told. A sampler is made anew for each proposal, seeded with (seed,
index), so that a controller that restarts goes on as if it had never died. Optuna is imported on
first use, and kept quiet.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from parsl_rasda.diagnostics import suggestion
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plugins import Plugin
from parsl_rasda.search.base import SearcherSettings
from parsl_rasda.search.space import Choice, Constant, Float, Int, Parameter, SearchSpace, same_value
from parsl_rasda.types import JSON, Mode, TrialId

_PLAIN: Mapping[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
_FORMS = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "None": "null"}
# Set by us, or about Optuna's own messages.
_VIOLATIONS = "violations"
_RESERVED = {"seed", "warn_independent_sampling"}


class SamplerOptions(BaseModel):
    """Options of one of Optuna's samplers, under its own names; they are checked where Optuna is imported."""

    model_config = ConfigDict(extra="allow")
    sampler: ClassVar[str]

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> JsonSchemaValue:
        import optuna.samplers

        make = getattr(optuna.samplers, cls.sampler)
        return {"type": "object", "properties": option_forms(make), "additionalProperties": False}


class TPEOptions(SamplerOptions):
    """Options of `tpe`."""

    sampler = "TPESampler"


class GPOptions(SamplerOptions):
    """Options of `gp`."""

    sampler = "GPSampler"


class CMAESOptions(SamplerOptions):
    """Options of `cmaes`."""

    sampler = "CmaEsSampler"


class NSGAIIOptions(SamplerOptions):
    """Options of `nsgaii`."""

    sampler = "NSGAIISampler"


class OptunaSearcher:
    """Proposes what an Optuna sampler suggests; each trial's last metric teaches it.

    A metric that is not finite teaches that the configuration is as bad as can be. A trial that failed
    teaches what it had reached, where the sampler can use that (TPE), else nothing.

    Args:
        make_sampler: Returns a fresh sampler for a seed.
        modes: Of all metrics.
        keeps_state: The sampler leaves notes in the study while it suggests (CMA-ES, NSGA-II), so a restart
            must let it suggest again.
        limits: Constraints that the sampler heeds: a trial that did not report them teaches nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        make_sampler: Callable[[int], Any],
        *,
        modes: Sequence[Mode],
        seed: int,
        keeps_state: bool = False,
        limits: int = 0,
    ) -> None:
        self._keeps_state, self._limits = keeps_state, limits
        self._space, self._make_sampler, self._seed = space, make_sampler, seed
        self._worst = [math.inf if mode is Mode.MIN else -math.inf for mode in modes]
        self._trials: dict[TrialId, Any] = {}  # Any: Optuna is imported late, so its types are not at hand
        self._configs: dict[TrialId, Mapping[str, JSON]] = {}
        self._reported: set[TrialId] = set()
        with _quiet():
            import optuna

            directions = ["minimize" if mode is Mode.MIN else "maximize" for mode in modes]
            self._study: Any = optuna.create_study(
                directions=directions, sampler=make_sampler(0)
            )  # `_ask` seeds

    def propose(self, trial: TrialId) -> Mapping[str, JSON] | None:
        """Return the sampler's suggestion; a known trial gets its own again."""
        if trial not in self._configs:
            with _quiet():
                asked = self._ask(trial)
                self._configs[trial] = self._space.configure(lambda n, p: _suggest(asked, n, p))
        return self._configs[trial]

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Take a configuration of an earlier controller as suggested; one of another space is only kept."""
        if trial in self._configs:
            return
        if self._space.accepts(config):
            fixed = {n: _internal(self._space.parameters[n], value) for n, value in config.items()}
            with _quiet():
                self._study.enqueue_trial(fixed)
                asked = self._ask(trial)
                if self._keeps_state:
                    asked.relative_params  # noqa: B018 - a property that makes the sampler suggest
                self._space.configure(lambda n, p: _suggest(asked, n, p))
        self._configs[trial] = config

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        """Note an intermediate result, which counts if the trial fails."""
        if trial in self._trials and math.isfinite(metric) and len(self._worst) == 1:
            with _quiet():
                self._trials[trial].report(metric, epoch)
            self._reported.add(trial)

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        """Learn a trial's last metric; only the first conclusion counts."""
        asked = self._trials.pop(trial, None)
        if asked is None:
            return
        with _quiet():
            from optuna.trial import TrialState

            if self._limits:  # nobody knows by how much it broke them
                self._study.tell(asked, state=TrialState.FAIL)
            elif metric is None:
                has_reported = trial in self._reported
                self._study.tell(asked, state=TrialState.PRUNED if has_reported else TrialState.FAIL)
            else:
                self._study.tell(asked, metric if math.isfinite(metric) else self._worst[0])

    def conclude_all(self, trial: TrialId, values: Sequence[float], violations: Sequence[float]) -> None:
        """Learn a trial's last metrics, and by how much it breaks each limit."""
        asked = self._trials.pop(trial, None)
        if asked is not None:
            with _quiet():
                asked.set_user_attr(_VIOLATIONS, list(violations))
                self._study.tell(asked, list(values))

    def _ask(self, trial: TrialId) -> Any:
        digest = hashlib.sha256(f"{self._seed}:{len(self._configs)}".encode()).digest()
        self._study.sampler = self._make_sampler(int.from_bytes(digest[:4], "big"))
        self._trials[trial] = self._study.ask()
        return self._trials[trial]


def _learning(kind: str, options_model: type[SamplerOptions]) -> Plugin:
    """Return the plug-in of a class in `optuna.samplers`."""
    sampler = options_model.sampler

    def build(options: BaseModel, settings: SearcherSettings) -> OptunaSearcher:
        import optuna.samplers

        make, given = getattr(optuna.samplers, sampler), options.model_extra or {}
        _check_options(kind, make, given)
        silent = kind in ("gp", "cmaes")  # TPE is silent by default, NSGA-II always
        fixed: dict[str, Any] = {"warn_independent_sampling": False} if silent else {}
        if settings.limits:
            fixed["constraints_func"] = lambda told: told.user_attrs[_VIOLATIONS]
        try:
            return OptunaSearcher(
                settings.space,
                lambda seed: make(seed=seed, **fixed, **given),
                modes=(settings.mode, *settings.other_modes),
                seed=settings.seed,
                keeps_state=kind in ("cmaes", "nsgaii"),
                limits=settings.limits,
            )
        except (ValueError, TypeError) as error:
            raise InvalidSettingError("searcher", dict(given), f"what {sampler} takes: {error}") from error

    return Plugin(build, options_model)


TPE, GP, CMAES, NSGAII = (
    _learning("tpe", TPEOptions),
    _learning("gp", GPOptions),
    _learning("cmaes", CMAESOptions),
    _learning("nsgaii", NSGAIIOptions),
)


def option_forms(make: Callable[..., object]) -> dict[str, JsonSchemaValue]:
    """Return the JSON Schema of each option of a sampler, with its default and Optuna's words for it."""
    parameters, said = inspect.signature(make).parameters, _said_of_arguments(make)
    return {
        name: {
            "type": [_FORMS[each] for each in types],
            "default": parameters[name].default,
            "description": said.get(name, f"An option of Optuna's {make.__name__}."),
        }
        for name, types in _plain_options(make).items()
    }


def _said_of_arguments(make: Callable[..., object]) -> dict[str, str]:
    """Return the first sentence that a docstring in Google's sections says of each argument."""
    _, _, rest = (inspect.getdoc(make) or "").partition("\nArgs:\n")
    found = re.findall(r"^    (\w+):\s+(.+?)(?=\n\n|\n    \w+:\n|\Z)", rest, re.MULTILINE | re.DOTALL)
    plain = ((name, re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(text.split()))) for name, text in found)
    return {name: text.partition(". ")[0].rstrip(".") + "." for name, text in plain}


def _plain_options(make: Callable[..., object]) -> dict[str, list[str]]:
    """Return the options whose types a YAML file can have, with these."""
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        types = str(parameter.annotation).split(" | ")
        if name not in _RESERVED and all(each in _PLAIN for each in types):
            found[name] = types
    return found


def _check_options(kind: str, make: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Compare the options with a constructor's parameters of plain types; others cannot come from YAML."""
    allowed = _plain_options(make)
    for name, value in given.items():
        if name not in allowed:
            listed = ", ".join(allowed) or "none"
            options = f"the options of {kind}: {listed}{suggestion(name, allowed)}"
            raise InvalidSettingError(f"searcher.{name}", value, options)
        types = allowed[name]
        is_boolean = isinstance(value, bool)
        if (is_boolean and "bool" not in types) or not any(isinstance(value, _PLAIN[each]) for each in types):
            raise InvalidSettingError(f"searcher.{name}", value, " or ".join(types))


def _suggest(asked: Any, name: str, parameter: Parameter) -> JSON:
    """Return what an Optuna trial suggests; values of a choice go by index, as they may be any JSON."""
    match parameter:
        case Constant(value):
            return value
        case Choice(values):
            return values[int(asked.suggest_categorical(name, range(len(values))))]
        case Float(low, high, log, None):
            return float(asked.suggest_float(name, low, high, log=log))
        case Float(low, _, _, step):
            # The last level, not `high`: Optuna warns about a range that its steps do not divide.
            last = parameter.level((parameter.count or 1) - 1)
            return parameter.nearest(asked.suggest_float(name, low, last, step=step))
        case Int(low, _, log, step):
            last = parameter.level(parameter.count - 1)
            return int(asked.suggest_int(name, low, last, log=log, step=step))


def _internal(parameter: Parameter, value: JSON) -> JSON:
    if isinstance(parameter, Choice):
        return next(i for i, each in enumerate(parameter.values) if same_value(each, value))
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log and its experimental-feature warnings, and leave both as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
