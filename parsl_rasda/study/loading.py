"""Study and site files in, specs out, with every mistake of a file at once; and back again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from parsl_rasda.diagnostics import (
    MOST_MISTAKES,
    Plain,
    diagnostics_in,
    listing,
    mapping_at,
    shown,
    suggestion,
)
from parsl_rasda.errors import Diagnostic, InvalidFileError, Loc
from parsl_rasda.study.document import (
    Document,
    Environment,
    NoSuchPlaceError,
    declared_document,
    dump_document,
    parse_value,
    read_document,
)
from parsl_rasda.study.functions import target_problems
from parsl_rasda.study.parsl_site import NO_ARGUMENTS
from parsl_rasda.study.pipelines import SHORT_KEYS, SHORT_STAGE, StudySpec, is_short_form
from parsl_rasda.study.sites import AnySite, ExecutorSite, SiteSpec
from parsl_rasda.study.tuning import TuneSpec
from parsl_rasda.study.yaml_nodes import DEEPEST
from parsl_rasda.study_code.targets import TargetError, signature_of

_Spec = TypeVar("_Spec")
_SITE: TypeAdapter[SiteSpec] = TypeAdapter(AnySite)
_TuneCheck: TypeAlias = Callable[[Plain], Iterable[Diagnostic]]
_StudyCheck: TypeAlias = Callable[[StudySpec], Iterable[Diagnostic]]
_OVERRIDE = "key=value, for example tune.num_samples=64 or stages.tune.tune.mode=max"
_SUFFIXES = (".yaml", ".yml")


def load_study(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    check_targets: bool = True,
    check_tune: _TuneCheck | None = None,
    check_study: _StudyCheck | None = None,
    environment: Environment | None = None,
    is_copy: bool = False,
) -> StudySpec:
    """Return the study that a file declares.

    Args:
        path: The YAML file.
        overrides: ``key=value`` each, dotted keys, values in YAML, applied in order. ``tune.`` at the
            front means the only stage that optimises.
        check_targets: Whether the functions it names are looked for, beside the file, in the current
            folder and on Python's path; nothing is imported.
        check_tune: What yields mistakes of a `tune` block that its spec cannot know; it gets the block
            as it was written.
        check_study: What yields mistakes of a study that is right by itself: where it shall run, say.
        environment: Values of ``${NAME}``; by default those of this process.
        is_copy: Whether `dump_study` wrote it: then it may be larger.

    Raises:
        InvalidFileError: With every mistake of the file.
    """
    file = Path(path)
    document = read_document(file, os.environ if environment is None else environment, is_copy=is_copy)
    _write_out_short_form(document)
    for override in overrides:
        _override(document, override, os.environ if environment is None else environment)
    spec = _checked(document, search_path(file) if check_targets else None, check_tune)
    mistakes = [document.placed(problem) for problem in check_study(spec)] if check_study else []
    if mistakes:
        raise InvalidFileError(mistakes)
    return spec


def declare_study(
    declared: Plain, source: str, *, check_tune: _TuneCheck | None = None, search_path: Sequence[Path] = ()
) -> StudySpec:
    """Return the study that a program declares, with the keys of a study file.

    Args:
        declared: What would stand in the file.
        source: What messages call it, in place of a file.
        check_tune: As `load_study` has it.
        search_path: Folders where its functions are, before the present one.

    Raises:
        InvalidFileError: With every mistake.
    """
    document = declared_document(declared, source)
    _write_out_short_form(document)
    return _checked(document, (*search_path, Path.cwd()), check_tune)


def declare_executor(declared: Plain, source: str) -> ExecutorSite:
    """Return the executor that a program declares, with the keys of a site file.

    Raises:
        InvalidFileError: With every mistake.
    """
    return _validated(declared_document(declared, source), ExecutorSite.model_validate, ())


def load_site(
    name_or_path: str | os.PathLike[str], *, environment: Environment | None = None, is_copy: bool = False
) -> SiteSpec:
    """Return the site of a file, or of a name in ./site_configs or among those that we ship.

    A copy, which `dump_site` wrote, may be larger.

    Raises:
        InvalidFileError: With every mistake of the file, or with the names there are.
    """
    path = site_file(name_or_path)
    document = read_document(path, os.environ if environment is None else environment, is_copy=is_copy)
    if isinstance(document.data, dict):
        document.data.setdefault("name", path.stem)
    site = _validated(document, _SITE.validate_python, _provider_problems(document.data))
    return site.as_written(document.written)


def dump_study(spec: StudySpec) -> str:
    """Return YAML that `load_study` reads as the same study, in any environment."""
    return dump_document(spec.model_dump(mode="json", by_alias=True))


def dump_site(spec: SiteSpec) -> str:
    """Return YAML that `load_site` reads as the same site, where its variables have the same values.

    Those are not in it: they may be secret.
    """
    data = spec.model_dump(mode="json", by_alias=True)
    for loc, written in spec.written.items():
        container: Any = data
        with suppress(KeyError, IndexError, TypeError):  # {kind: ${NAME}} is written as ${NAME}
            for part in loc[:-1]:
                container = container[part]
            container[loc[-1]] = written
    return dump_document(data)


def search_path(study_file: Path) -> tuple[Path, ...]:
    """Return the folders where a study's functions are looked for before Python's own path."""
    return (study_file.parent.resolve(), Path.cwd())


def site_folders() -> tuple[Path, ...]:
    """Return the folders whose files are sites that can be called by name, in order."""
    package = Path(__file__).resolve().parent.parent
    return (Path.cwd() / "site_configs", package.parent / "site_configs", package / "site_configs")


def site_names() -> tuple[str, ...]:
    """Return the names of all sites that can be called by name."""
    files = (f for folder in site_folders() if folder.is_dir() for f in folder.iterdir())
    return tuple(sorted({f.stem for f in files if f.suffix in _SUFFIXES}))


def site_file(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a site.

    Raises:
        InvalidFileError: If it is a name that nobody knows; the message lists those there are.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or os.sep in text or text.endswith(_SUFFIXES):
        return Path(text)
    candidates = (folder / f"{text}{suffix}" for folder in site_folders() for suffix in _SUFFIXES)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = site_names()
    allowed = f"{listing(names)}{suggestion(text, names)}, or the path of a file"
    raise InvalidFileError([Diagnostic(("--site",), "no site of that name", allowed, text)])


def _checked(document: Document, folders: Sequence[Path] | None, check_tune: _TuneCheck | None) -> StudySpec:
    """Return the study of a document; its functions are looked for if there are folders to look in."""
    problems: list[Diagnostic] = []
    if folders is not None and isinstance(document.data, Mapping):
        problems += islice(target_problems(document.data, folders), MOST_MISTAKES)
    if check_tune is not None:
        problems += islice(_tune_problems(document.data, check_tune), MOST_MISTAKES)
    return _validated(document, StudySpec.model_validate, problems)


def _validated(document: Document, validate: Callable[[Any], _Spec], more: Iterable[Diagnostic]) -> _Spec:
    problems, spec = [*islice(more, MOST_MISTAKES)], None
    try:
        spec = validate(document.data)
    except ValidationError as error:
        problems = [*diagnostics_in(error), *problems]
    named = {(m.file, m.line, m.key) for m in document.mistakes}  # what follows from these is no news
    mistakes = [m for m in map(document.placed, problems) if (m.file, m.line, m.key) not in named]
    mistakes = sorted([*document.mistakes, *dict.fromkeys(mistakes)], key=lambda m: m.line)
    if mistakes or spec is None:
        raise InvalidFileError(mistakes[:MOST_MISTAKES])
    return spec


def _tune_problems(data: object, check: _TuneCheck) -> Iterator[Diagnostic]:
    for name, stage in mapping_at(data, "stages").items():
        for problem in check(block) if (block := mapping_at(stage, "tune")) else ():
            yield problem.below("stages", name, "tune")


def _write_out_short_form(document: Document) -> None:
    if is_short_form(document.data):
        document.data = StudySpec.normalised(document.data)
        for key in SHORT_KEYS:
            document.move((key,), ("stages", SHORT_STAGE, key))


def _override(document: Document, override: str, environment: Environment) -> None:
    source = f"--set {override}"
    key, equals, value = override.partition("=")
    parts = tuple(key.split("."))
    if not equals or not all(parts) or len(parts) > DEEPEST:
        document.mistakes.append(Diagnostic((key,), "no key=value", _OVERRIDE, source))
        return
    try:
        document.put(_meant(document.data, parts), parse_value(value, source, parts, environment))
    except NoSuchPlaceError as error:
        document.mistakes.append(Diagnostic((key,), str(error), _OVERRIDE, source))


def _meant(data: object, parts: tuple[str, ...]) -> Loc:
    """Return the full key: ``tune``, ``with`` or ``site`` at the front means the only `tune` stage."""
    if parts[0] not in SHORT_KEYS:
        if parts[0] in set(TuneSpec.keys()).difference(StudySpec.keys()):
            raise NoSuchPlaceError(f"a key that a study has further down (did you mean tune.{parts[0]}?)")
        return parts
    names = [n for n, s in mapping_at(data, "stages").items() if isinstance(s, Mapping) and "tune" in s]
    if len(names) != 1:
        many = (
            f"{parts[0]} of one of {listing(names)}; name the stage" if names else "no stage that optimises"
        )
        raise NoSuchPlaceError(many)
    return ("stages", names[0], *parts)


def _provider_problems(data: object) -> Iterator[Diagnostic]:
    """Yield what Parsl's provider does not know, told from Parsl's source."""
    provider = mapping_at(data, "provider")
    kind = provider.get("type")
    if not isinstance(kind, str) or not kind.isidentifier():
        return
    try:
        signature = signature_of(f"parsl.providers:{kind}", ())
    except TargetError as error:
        yield Diagnostic(("provider", "type"), shown(kind), error.allowed)
        return
    options = [key for key in provider if key != "type"]
    for key in options:
        if key in NO_ARGUMENTS:
            yield Diagnostic(("provider", key), "a setting that is ours", NO_ARGUMENTS[key])
        elif signature is not None and not signature.takes_any and key not in signature.names:
            names = [n for n in signature.names if n not in NO_ARGUMENTS]
            found = f"an argument that Parsl's {kind} does not have"
            yield Diagnostic(("provider", key), found, f"{listing(names)}{suggestion(key, names)}")
    missing = [n for n in signature.required if n not in provider] if signature else []
    if missing:
        yield Diagnostic(("provider",), f"no {listing(missing)}", f"what Parsl's {kind} requires")
