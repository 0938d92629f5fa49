"""The base of all specs: frozen, no unknown keys, and every mistake in the words of the user.

A spec is checked twice in one go: pydantic looks at each field, `Spec.problems` at what only
several fields together can tell. Both run even when the other has found something, so that one
reading of a file names all that is wrong with it. Nothing here builds or imports anything.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    StrictBool,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Loc: TypeAlias = tuple[str | int, ...]
Plain: TypeAlias = Mapping[str, Any]  # parsed YAML that may still be wrong in every way

_SHOWN = 60  # characters of a value that a message repeats


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at a place of the plain form of a spec."""

    loc: Loc
    found: str
    allowed: str


class Spec(BaseModel):
    """The base of every spec: frozen, unknown keys are mistakes, `problems` sees fields together."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Return the one form that fields are read from; short forms are written out here."""
        return data

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Problem]:
        """Yield what is wrong between fields.

        Args:
            plain: What the user wrote: defaults are missing and nothing about types is certain, so read
                it with `mapping_at`.
        """
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _report_everything(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        data = cls.normalised(data)
        spec, details = None, []
        try:
            spec = handler(data)
        except ValidationError as error:
            details = [_in_our_words(cls, e) for e in error.errors(include_url=False)]
        if isinstance(data, Mapping):
            aliases: dict[str, str] = {name: f.alias or name for name, f in cls.model_fields.items()}
            plain = {aliases.get(str(k), str(k)): _plain(v) for k, v in data.items()}
            details += [_detail(p) for p in cls.problems(plain)]
        if spec is None or details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return spec

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the keys that a file may use, in the order of the manual."""
        return tuple(f.alias or name for name, f in cls.model_fields.items())

    @classmethod
    def words(cls) -> tuple[str, ...]:
        """Return what an unknown key may have been meant to be."""
        return cls.keys()


def problems_in(error: ValidationError) -> Iterator[Problem]:
    """Yield what a spec's validation found."""
    for e in error.errors(include_url=False):
        context = e.get("ctx", {})
        yield Problem(_without_tags(e["loc"]), str(context["found"]), str(context["allowed"]))


# ------------------------------------------------------------------------------------------- words


def shown(value: object) -> str:
    """Return a value as a message repeats it: as YAML would write it, and short."""
    text = _flow(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _flow(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    return repr(value)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def listing(words: Iterable[str]) -> str:
    """Return ``a, b, c``, or a word for none."""
    return ", ".join(words) or "none"


def suggestion(word: object, options: Iterable[str]) -> str:
    """Return `` (did you mean x?)`` if an option is close to the word, else nothing."""
    original = {o.lower(): o for o in options if o != word}
    close = difflib.get_close_matches(str(word).lower(), original, n=1)
    return f" (did you mean {original[close[0]]}?)" if close else ""


def complaint(found: object, allowed: str) -> PydanticCustomError:
    """Return the error that a field's validator raises."""
    words = found if isinstance(found, _Words) else shown(found)
    return PydanticCustomError(
        "mistake", "found {found}; allowed: {allowed}", {"found": str(words), "allowed": allowed}
    )


class _Words(str):
    """Text of ours in a message, as against text of the user, which is quoted."""

    __slots__ = ()


def mapping_at(plain: object, *keys: str) -> Mapping[str, Any]:
    """Return the mapping below these keys, or an empty one if something else is there."""
    for key in keys:
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return plain if isinstance(plain, Mapping) else {}


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _detail(problem: Problem) -> InitErrorDetails:
    error = complaint(_Words(problem.found), problem.allowed)
    return InitErrorDetails(type=error, loc=problem.loc, input=None)


def _in_our_words(cls: type[Spec], error: ErrorDetails) -> InitErrorDetails:
    loc = _without_tags(error["loc"])
    context, kind = error.get("ctx", {}), error["type"]
    if kind == "mistake":
        found, allowed = context["found"], context["allowed"]
    elif kind == "extra_forbidden":
        found, allowed = "an unknown key", listing(cls.keys()) + suggestion(loc[-1], cls.words())
    elif kind == "missing":
        found, allowed = "nothing", _description(cls, loc) or "a value"
    else:
        found, allowed = shown(error["input"]), _expectation(error)
    return _detail(Problem(loc, found, allowed))


def _without_tags(loc: Loc) -> Loc:
    """Return the place in the file: pydantic adds the variant of unions and ``[key]`` of mappings."""
    return tuple(p for p in loc if p != "[key]" and not (isinstance(p, str) and p.startswith(MARK)))


def _expectation(error: ErrorDetails) -> str:
    context, kind = error.get("ctx", {}), error["type"]
    if kind in {"model_type", "model_attributes_type", "dict_type", "mapping_type"}:
        return "a mapping (key: value)"
    if kind in {"tuple_type", "list_type"}:
        return "a list"
    if kind == "too_short":
        least = context["min_length"]
        return "at least one entry" if least == 1 else f"at least {least} entries"
    if kind == "too_long":
        return f"at most {context['max_length']} entries"
    text = error["msg"].removeprefix("Input should be ")
    if kind in {"literal_error", "enum"}:
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        return listing(options) + suggestion(error["input"], options)
    return text.replace("a valid integer", "a whole number").replace("a valid ", "a ")


def _description(cls: type[Spec], loc: Loc) -> str:
    for name, field in cls.model_fields.items():
        if loc == (field.alias or name,):
            return field.description or ""
    return ""


# ------------------------------------------------------------------------------------ kinds of values


@dataclass(frozen=True, slots=True)
class _Matches:
    pattern: re.Pattern[str]
    allowed: str

    def __call__(self, value: str) -> str:
        if not self.pattern.fullmatch(value):
            raise complaint(value, self.allowed)
        return value


MARK = "\0"  # begins the name of a union's variant; no key of a YAML file can
IDENTIFIER = re.compile(r"[^\W\d]\w*")
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_LABEL = re.compile(r"\w[\w.-]*")

Identifier = Annotated[str, AfterValidator(_Matches(IDENTIFIER, "letters, digits and _, no digit first"))]
Label = Annotated[str, AfterValidator(_Matches(_LABEL, "letters, digits, _, - and ., and no blanks"))]
Target = Annotated[str, AfterValidator(_Matches(TARGET, "package.module:function"))]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Flag = StrictBool
Arguments = Mapping[Identifier, JsonValue]


def exactly_one(*keys: str) -> Callable[[object], object]:
    """Return the check of a mapping whose variant is told by the key that is present."""

    def check(value: object) -> object:
        allowed = f"exactly one of {listing(keys)}"
        if isinstance(value, Mapping):
            present = [k for k in keys if k in value]
            if len(present) == 1:
                return value
            if present:
                raise complaint(_Words(" and ".join(present)), allowed)
            hints = (suggestion(k, keys) for k in value)
            words = _Words(f"only {listing(map(str, value))}" if value else "an empty mapping")
            raise complaint(words, allowed + next((h for h in hints if h), ""))
        if isinstance(value, BaseModel):
            return value
        raise complaint(value, f"a mapping with {allowed}")

    return check


def variant(value: object, keys: Iterable[str]) -> str | None:
    """Return the tag of the union's member that a checked value belongs to."""
    if isinstance(value, BaseModel):
        value = type(value).model_fields
    names = value if isinstance(value, Mapping) else {}
    return next((MARK + k for k in keys if k in names), None)
