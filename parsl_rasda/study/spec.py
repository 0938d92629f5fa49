"""The base of all specs: frozen, no unknown keys, and every mistake in the words of the user.

A spec is checked twice in one go: pydantic looks at each field, `Spec.problems` at what only
several fields together can tell. Both run even when the other has found something, so that one
reading of a file names all that is wrong with it. Nothing here builds or imports anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    ModelWrapValidatorHandler,
    StrictBool,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

from parsl_rasda.diagnostics import (
    MARK,
    MOST_MISTAKES,
    Plain,
    all_as_error,
    as_error,
    diagnostics_in,
    keys_of,
    listing,
    refused,
    shown,
    suggestion,
)
from parsl_rasda.errors import Diagnostic
from parsl_rasda.plugins import Choice, PluginGroup


class Spec(BaseModel):
    """The base of every spec: frozen, unknown keys are mistakes, `problems` sees fields together."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Return the one form that fields are read from; short forms are written out here."""
        return data

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
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
        spec, found = None, []
        try:
            spec = handler(data)
        except ValidationError as error:
            found = [*diagnostics_in(error, cls, cls.words())]
        if isinstance(data, Mapping):
            aliases: dict[str, str] = {name: f.alias or name for name, f in cls.model_fields.items()}
            plain = {aliases.get(str(k), str(k)): _plain(v) for k, v in data.items()}
            found += islice(cls.problems(plain), MOST_MISTAKES)
        if spec is None or found:
            raise all_as_error(cls.__name__, found)
        return spec

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the JSON Schema of what a file may hold, short forms too.

        Args:
            schema: That of the fields.
        """
        return schema

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(core_schema)
        fields = handler.resolve_ref_schema(found)
        form = cls.file_form(dict(fields))
        fields.clear()
        fields.update(form)  # in place: what refers to the model finds it
        return found

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the keys that a file may use, in the order of the manual."""
        return keys_of(cls)

    @classmethod
    def words(cls) -> tuple[str, ...]:
        """Return what an unknown key may have been meant to be."""
        return cls.keys()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


class PluginSpec(Spec):
    """The base of a block whose key `chosen_by` names a plug-in: keys that are not ours are its options."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    group: ClassVar[PluginGroup]
    chosen_by: ClassVar[str] = "kind"

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a plug-in that does not exist, and mistakes in its options."""
        kind = plain.get(cls.chosen_by, cls.model_fields[cls.chosen_by].default)
        if isinstance(kind, str):
            ours = cls.keys()
            options = {key: value for key, value in plain.items() if key not in ours}
            for found in cls.group.problems({**options, "kind": kind}, ours):
                yield replace(found, loc=(cls.chosen_by,)) if found.loc == ("kind",) else found

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, marked so that the names and options of plug-ins are put in."""
        return {**schema, PLUGINS: {"group": cls.group.name, "chosen_by": cls.chosen_by}}

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """The options of the plug-in."""
        return self.model_extra or {}

    @property
    def choice(self) -> Choice:
        """The plug-in and its options."""
        return {**self.options, "kind": str(getattr(self, self.chosen_by))}


PLUGINS = "x-plugins"  # marks what `parsl_rasda.study.schema` fills in


@dataclass(frozen=True, slots=True)
class _ChosenFrom:
    group: PluginGroup

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {PLUGINS: {"group": self.group.name}}

    def _checked(self, value: object) -> object:
        if isinstance(value, Mapping):
            if not isinstance(value.get("kind"), str):
                found = Diagnostic(("kind",), shown(value.get("kind")), "a name")
                raise all_as_error(self.group.name, [found])
        elif not isinstance(value, str):
            raise refused(value, "a name, or a mapping of kind and options")
        if problems := [*self.group.problems(value, ("kind",))]:
            raise all_as_error(self.group.name, problems)
        return value if isinstance(value, str) or len(value) > 1 else value["kind"]


def chosen_from(group: PluginGroup) -> _ChosenFrom:
    """Return the mark of a field that is the name of a plug-in, or a mapping of ``kind`` and its options."""
    return _ChosenFrom(group)


# ------------------------------------------------------------------------------------ kinds of values


LONGEST_NAME = 100  # characters; names become parts of paths
MOST = 1_000_000  # of anything counted that has no lower limit of its own
LONGEST_S = 1e9  # thirty years
LARGEST_NUMBER = 1e150  # its square is still a number
LARGEST_SEED = 2**64 - 1  # what generators of random numbers take


def mapping_form(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the JSON Schema of a mapping that refuses keys which its pattern does not fit."""
    patterns = schema.get("patternProperties")
    if not isinstance(patterns, dict) or len(patterns) != 1:
        return schema
    ((pattern, values),) = patterns.items()
    rest = {key: value for key, value in schema.items() if key != "patternProperties"}
    return {**rest, "propertyNames": {"pattern": pattern}, "additionalProperties": values}


def or_null(form: JsonSchemaValue) -> WithJsonSchema:
    """Return the JSON Schema of what may be nothing, too."""
    return WithJsonSchema({"anyOf": [form, {"type": "null"}]})


def matching(pattern: str, allowed: str) -> JsonSchemaValue:
    """Return the JSON Schema of text that a pattern describes whole; ``allowed`` says it in words."""
    return {"type": "string", "pattern": f"^(?:{pattern})$", "patternErrorMessage": allowed}


@dataclass(frozen=True, slots=True)
class _Matches:
    pattern: re.Pattern[str]
    allowed: str

    @property
    def form(self) -> JsonSchemaValue:
        return matching(_with_all_letters(self.pattern.pattern), self.allowed)

    def __call__(self, value: str) -> str:
        if len(value) > LONGEST_NAME and self.pattern is not TARGET:
            raise refused(value, f"at most {LONGEST_NAME} characters")
        if not self.pattern.fullmatch(value):
            raise refused(value, self.allowed)
        return value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise refused(value, "text without the character U+0000, which no path and no command can have")
    return value


Text = Annotated[str, AfterValidator(_without_nul)]

IDENTIFIER = re.compile(r"[^\W\d]\w*")
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_LABEL = re.compile(r"\w[\w.-]*")

_A_LETTER, _ALL_LETTERS = r"[^\W\d]", "A-Za-z_\u00aa-\uffff"


def _with_all_letters(pattern: str) -> str:
    """Return a pattern that means the same in JSON Schema, where a letter is one of ASCII."""
    of_a_class = pattern.replace(_A_LETTER, f"[{_ALL_LETTERS}]").replace(r"[\w", f"[0-9{_ALL_LETTERS}")
    return of_a_class.replace(r"\w", f"[0-9{_ALL_LETTERS}]")


_IDENTIFIER = _Matches(IDENTIFIER, "letters, digits and _, no digit first")
_NAME = _Matches(_LABEL, "letters, digits, _, - and ., and no blanks")
_TARGET = _Matches(TARGET, "package.module:function")
IDENTIFIER_FORM = _IDENTIFIER.form
Identifier = Annotated[str, AfterValidator(_IDENTIFIER), WithJsonSchema(IDENTIFIER_FORM)]
Label = Annotated[str, AfterValidator(_NAME), WithJsonSchema(_NAME.form)]
Target = Annotated[str, AfterValidator(_TARGET), WithJsonSchema(_TARGET.form)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
Number = Annotated[float, Field(strict=True, ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=LONGEST_S)]
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
                raise as_error(Diagnostic((), " and ".join(present), allowed))
            hints = (suggestion(k, keys) for k in value)
            found = f"only {listing(map(str, value))}" if value else "an empty mapping"
            raise as_error(Diagnostic((), found, allowed + next((h for h in hints if h), "")))
        if isinstance(value, BaseModel):
            return value
        raise refused(value, f"a mapping with {allowed}")

    return check


def variant(value: object, keys: Iterable[str]) -> str | None:
    """Return the tag of the union's member that a checked value belongs to."""
    if isinstance(value, BaseModel):
        value = type(value).model_fields
    names = value if isinstance(value, Mapping) else {}
    return next((MARK + k for k in keys if k in names), None)
