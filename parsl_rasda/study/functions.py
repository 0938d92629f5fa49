"""Whether the functions that a study names exist, and take what it gives them; nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from parsl_rasda.diagnostics import Plain, listing, mapping_at, shown, suggestion
from parsl_rasda.errors import Diagnostic, Loc
from parsl_rasda.study.files import file_url
from parsl_rasda.study.pipelines import DIRECTORY
from parsl_rasda.study.spec import TARGET
from parsl_rasda.study_code.annotations import is_of
from parsl_rasda.study_code.targets import TargetError, signature_of


def target_problems(plain: Plain, paths: Sequence[Path]) -> Iterator[Diagnostic]:
    """Yield what is wrong with the functions that a study names.

    Args:
        plain: A study in its long form, which may be wrong elsewhere.
        paths: Folders to look in before Python's own path.
    """
    for name, stage in mapping_at(plain, "stages").items():
        given = {a: key for key in ("for_each", "with", "needs") for a in mapping_at(stage, key)}
        loc: Loc = ("stages", name)
        own = mapping_at(stage).get("python")
        training = mapping_at(stage, "tune", "training").get("python")
        if _is_target(own):
            found = [*_call_problems(("python",), own, given, paths, leading=False)]
            for problem in found or _type_problems(own, mapping_at(stage, "with"), paths):
                yield problem.below(*loc)
        if _is_target(training):
            where = ("tune", "training", "python")
            for problem in _call_problems(where, training, given, paths, leading=True):
                yield problem.below(*loc)


def _is_target(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and TARGET.fullmatch(value) is not None


def _call_problems(
    loc: Loc, target: str, given: Mapping[str, str], paths: Sequence[Path], *, leading: bool
) -> Iterator[Diagnostic]:
    try:
        signature = signature_of(target, paths)
    except TargetError as error:
        yield Diagnostic(loc, error.found, error.allowed)
        return
    if signature is None:
        return
    if leading:
        if not (signature.positional or signature.takes_any_positional) or len(signature.required) > leading:
            found = f"{target}({', '.join(signature.names)})"
            yield Diagnostic(loc, found, f"a function of the trial alone; trial.inputs has {listing(given)}")
        return
    known = (*given, DIRECTORY)
    if missing := [n for n in signature.required if n not in known]:
        found = f"{target}({', '.join(signature.names)}), which needs {listing(missing)}"
        yield Diagnostic(loc, found, f"parameters that needs, with or for_each give: {listing(known)}")
    for name in [] if signature.takes_any else [n for n in given if n not in signature.names]:
        found = f"an argument that {target} does not take"
        names = [n for n in signature.names if n != DIRECTORY]
        yield Diagnostic((given[name], name), found, f"{listing(names)}{suggestion(name, names)}")


def _type_problems(target: str, constants: Plain, paths: Sequence[Path]) -> Iterator[Diagnostic]:
    """Yield the constants that are not what the function's annotations say."""
    signature = signature_of(target, paths)
    for name, value in constants.items():
        annotation = signature.annotations.get(name) if signature else None
        given = "a path" if file_url(value) is not None else value
        if annotation is not None and not is_of(given, annotation):
            yield Diagnostic(("with", name), shown(value), f"{annotation}, which {target} says of {name}")
