"""Models with their optimizers: usually one of each; a GAN, for one, gives several by name.

A loss trains the model that it is given for, and no other: the gradient that a generator's loss has for the
discriminator is never computed. All losses of a step are taken at the same weights, those before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.suitability import (
    refuse_unfit_loss,
    refuse_unfit_model,
    refuse_unfit_optimizer,
    trained_parameters,
)

OptimizerFactory: TypeAlias = Callable[[list[nn.Parameter], float], Any]  # an optimizer, or several
Models: TypeAlias = nn.Module | Mapping[str, nn.Module]
ONE = ""  # the name of a model that is given without one


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and what updates it.

    Attributes:
        made: What the user's function has made: an optimizer, or a tuple or list of several.
        optimizers: These.
        parameters: Those that are trained, or may be later.
    """

    model: nn.Module
    made: Any
    optimizers: tuple[Optimizer, ...]
    parameters: list[nn.Parameter]


def named_models(models: Models) -> dict[str, nn.Module]:
    """Return the models by name; one without a name as `ONE`.

    Raises:
        TrainingError: If replicas cannot train one of them.
    """
    if not isinstance(models, Mapping):
        refuse_unfit_model(models)
        return {ONE: models}
    found: dict[Any, nn.Module] = dict(models)
    if not found or not all(isinstance(name, str) and name.isidentifier() for name in found):
        raise TrainingError(
            f"The models have the names {list(found)}.", "Give each a name such as 'generator'."
        )
    for model in found.values():
        refuse_unfit_model(model)
    owners: dict[nn.Parameter, str] = {}
    for name, model in found.items():
        for parameter in model.parameters():
            if owners.setdefault(parameter, name) != name:
                raise TrainingError(
                    f"The models {owners[parameter]!r} and {name!r} share parameters.",
                    "Make what they share a model of its own, or combine them in one nn.Module.",
                )
    return found


def whole_of(models: Mapping[str, nn.Module]) -> nn.Module:
    """Return all models as one module, under whose names they are saved."""
    if ONE in models:
        return models[ONE]
    try:
        return nn.ModuleDict(models)
    except KeyError as error:  # such as `keys`
        raise TrainingError(f"A model cannot have this name: {error}.", "Choose another.") from error


def pairs_of(
    models: Mapping[str, nn.Module],
    factories: OptimizerFactory | Mapping[str, OptimizerFactory],
    rates: float | Mapping[str, float],
) -> dict[str, Pair]:
    """Return each model with its optimizers.

    Args:
        models: On their device.
        factories: What makes the optimizers: for each model, if these have names.
        rates: The learning rates: for each model, or one for all.

    Raises:
        TrainingError: If names do not match, or an optimizer cannot be used.
    """
    if ONE in models and (isinstance(factories, Mapping) or isinstance(rates, Mapping)):
        raise TrainingError(
            "There is one model, but the optimizers or rates are given by name.",
            "Give several models by name, too; one function may make several optimizers for one model: "
            "lambda p, lr: (SGD(p[:2], lr), AdamW(p[2:], lr)).",
        )
    by_name = {name: _of(name, models, factories, "optimizer") for name in models}
    return {
        name: _pair(model, by_name[name], _of(name, models, rates, "lr")) for name, model in models.items()
    }


def _of(name: str, models: Mapping[str, nn.Module], given: Any, what: str) -> Any:
    if isinstance(given, Mapping):
        if given.keys() != models.keys():
            raise TrainingError(
                f"{what} has the names {sorted(given)}, but the models are {sorted(models)}.",
                "Give one for each model.",
            )
        return given[name]
    if name != ONE and what == "optimizer":
        raise TrainingError(
            f"The models are {sorted(models)}, but there is one optimizer.",
            "Give a dict that has a function for each model.",
        )
    return given


def _pair(model: nn.Module, factory: OptimizerFactory, rate: float) -> Pair:
    trained = [p for p in model.parameters() if p.requires_grad]
    made = factory(trained, float(rate))
    optimizers = tuple(made) if isinstance(made, tuple | list) else (made,)
    for optimizer in optimizers:
        refuse_unfit_optimizer(optimizer)
    held = [p for optimizer in optimizers for options in optimizer.param_groups for p in options["params"]]
    if len(set(held)) < len(held):
        raise TrainingError(
            "Two of the optimizers have the same parameter.", "Give each parameter to one of them."
        )
    return Pair(model, made, optimizers, trained_parameters(model, held))


def losses_of(
    loss: Tensor | Mapping[str, Tensor], pairs: Mapping[str, Pair]
) -> Iterator[tuple[str, Pair, Tensor]]:
    """Yield each loss with the pair that it trains.

    Raises:
        TrainingError: If one is none, or belongs to no model.
    """
    if ONE in pairs:
        refuse_unfit_loss(loss)
        losses: Mapping[str, Any] = {ONE: loss}
    elif not isinstance(loss, Mapping) or not loss or not loss.keys() <= pairs.keys():
        found = f"losses for {sorted(loss)}" if isinstance(loss, Mapping) else f"a {type(loss).__name__}"
        raise TrainingError(
            f"trial.step got {found}, but the models are {sorted(pairs)}.",
            "Give a dict with the loss of each model that is to be trained in this step.",
        )
    else:
        losses = loss
    for name, value in losses.items():
        refuse_unfit_loss(value)
        yield name, pairs[name], value


def kinds(optimizers: Sequence[Optimizer]) -> str:
    """Return the names of the optimizers' classes, by which a checkpoint knows them."""
    return ", ".join(type(optimizer).__name__ for optimizer in optimizers)
