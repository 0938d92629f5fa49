"""JSON Schemas of study and site files, for editors and for the reference.

Made from the models: their fields, descriptions and bounds, and the `file_form` of each. Two things are put
in here: the names and options of plug-ins, and ``${NAME}`` wherever a file may have a variable. Draft 7,
since editors know no later one whole. What only other parts of a file can tell (that a stage exists, say)
no schema sees: `validate` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.plugins import BACKENDS, GROUPS, PluginGroup
from parsl_rasda.study.pipelines import SHORT_KEYS, SHORT_STAGE, StudySpec
from parsl_rasda.study.schema_rules import with_rules
from parsl_rasda.study.sites import AnySite
from parsl_rasda.study.spec import PLUGINS, mapping_form

DRAFT = "http://json-schema.org/draft-07/schema#"
FOLDER = Path(__file__).resolve().parent / "schemas"  # as shipped: with what is built in
KINDS = ("study", "site")

_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Za-z_]", "title": "a variable"}
_NARROW, _FIXED = ("integer", "number", "boolean"), {"enum", "const", "pattern"}
_MAPPINGS, _LISTS = {"properties", "patternProperties", "$defs"}, {"anyOf", "allOf", "oneOf", "prefixItems"}
_SINGLE = {"items", "additionalProperties", "propertyNames", "if", "then", "else", "not"}
_EXACT = {"if", "not", "propertyNames"}  # where no variable is put in


def schema_of(kind: str, *, installed: bool = True) -> JsonSchemaValue:
    """Return the JSON Schema of study or site files.

    Args:
        kind: ``study`` or ``site``.
        installed: With the plug-ins that are installed here, not only what is built in.
    """
    model: Any = StudySpec if kind == "study" else AnySite
    found = TypeAdapter(model).json_schema()
    if kind == "study":
        found = with_rules(_with_short_form(found), installed=installed)
    else:
        found |= {"type": "object", "title": "SiteSpec", "description": "A site: where trainings run."}
    more: JsonSchemaValue = {"Variable": _VARIABLE}
    found = _everywhere(found, lambda node: _with_plugins(node, more, installed=installed))
    found = _with_variables(_everywhere(found, _as_draft_7))
    found["$defs"] |= {name: _everywhere(form, _as_draft_7) for name, form in more.items()}
    return {"$schema": DRAFT, **found}


def shipped(kind: str) -> Path:
    """Return the file that holds the schema of what is built in."""
    return FOLDER / f"{kind}.schema.json"


def as_text(schema: JsonSchemaValue) -> str:
    """Return a schema as its file has it."""
    return json.dumps(schema, indent=1) + "\n"


def editor_line(kind: str) -> str:
    """Return the first line of a file by which editors with a YAML language server find its schema."""
    return f"# yaml-language-server: $schema={shipped(kind).as_uri()}\n"


def _with_short_form(study: JsonSchemaValue) -> JsonSchemaValue:
    of_stage = study["$defs"]["TuneStage"]["properties"]
    short = {key: of_stage[key] for key in SHORT_KEYS}
    forms = [
        {"required": ["stages"], "properties": dict.fromkeys(SHORT_KEYS, False)},
        {"required": [SHORT_STAGE], "properties": {"stages": False}},
    ]
    required = [key for key in study["required"] if key != "stages"]
    properties = {**study["properties"], **short}
    return {**study, "properties": properties, "required": required, "oneOf": forms}


def _everywhere(node: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a schema whose parts are changed, the innermost first."""
    if not isinstance(node, dict):
        return node
    return change(
        {key: _below(key, value, lambda each: _everywhere(each, change)) for key, value in node.items()}
    )


def _below(key: str, value: Any, change: Callable[[Any], Any]) -> Any:
    """Return the value of a keyword, with the schemas in it changed."""
    if key in _MAPPINGS and isinstance(value, dict):
        return {name: change(each) for name, each in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [change(each) for each in value]
    return change(value) if key in _SINGLE else value


# ---------------------------------------------------------------------------------------- plug-ins


def _with_plugins(node: dict[str, Any], more: JsonSchemaValue, *, installed: bool) -> dict[str, Any]:
    mark = node.pop(PLUGINS, None)
    if mark is None:
        return node
    group = next(each for each in GROUPS if each.name == mark["group"])
    plugins = dict(_options(group, installed=installed))
    for form in plugins.values():
        more |= form.pop("$defs", {})
    chosen_by = mark.get("chosen_by")
    if chosen_by is None:
        kind = {"kind": {"type": "string"}}
        forms = [_choice(name, kind, form, "kind", is_default=False) for name, form in plugins.items()]
        names: JsonSchemaValue = {"enum": [*plugins]}
        told = {"description": "Its name; its options stand beside it.", "examples": [*plugins][:1]}
        mapping = {
            "type": "object",
            "properties": {"kind": names | told},
            "required": ["kind"],
            "allOf": forms,
        }
        return {**node, "anyOf": [names, mapping]}
    fields = dict(node["properties"])
    default = fields[chosen_by].get("default")
    forms = [
        _choice(name, fields, form, chosen_by, is_default=name == default) for name, form in plugins.items()
    ]
    if plugins:
        fields[chosen_by] = {**fields[chosen_by], "enum": [*plugins]}
    node.pop("additionalProperties", None)
    return {**node, "properties": fields, "allOf": [*node.get("allOf", []), *forms]}


def _options(group: PluginGroup, *, installed: bool) -> Iterator[tuple[str, JsonSchemaValue]]:
    """Yield the names that a file may choose, with the JSON Schema of their options."""
    for name in group.names() if installed else group.built_in:
        if group is BACKENDS and name in group.built_in:
            continue  # `provider` and `endpoint_id` choose these
        try:
            yield name, _form_of_options(group.plugin(name).options, installed=installed)
        except InvalidFileError:
            continue  # it cannot be imported: `validate` says so where it is chosen


def _form_of_options(options: type[BaseModel], *, installed: bool) -> JsonSchemaValue:
    """Return the JSON Schema of options; those that a library checks are known where it is installed."""
    if options.model_config.get("extra") == "allow" and not installed:
        return {"additionalProperties": True}
    return options.model_json_schema()


def _choice(
    name: str, fields: dict[str, Any], options: JsonSchemaValue, chosen_by: str, *, is_default: bool
) -> JsonSchemaValue:
    """Return what holds if a plug-in is chosen: which keys there are, and what they may be."""
    given = options.get("properties", {})
    then: JsonSchemaValue = {"properties": given} if given else {}
    if options.get("additionalProperties") is not True:
        then["propertyNames"] = {"enum": [*fields, *given]}
    if options.get("required"):
        then["required"] = options["required"]
    is_chosen = {"properties": {chosen_by: {"const": name}}}
    return {"if": is_chosen if is_default else {**is_chosen, "required": [chosen_by]}, "then": then}


# ---------------------------------------------------------------------------------------- forms


def _as_draft_7(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node without titles that repeat its key, and in words of draft 7."""
    if isinstance(node.get("title"), str):
        node.pop("title")
    items = node.pop("prefixItems", None)
    if isinstance(items, list) and items:
        node["items"] = items[0]  # bounds: two of a kind
    node = mapping_form(node)
    if isinstance(node.get("$ref"), str) and len(node) > 1:
        node["allOf"] = [{"$ref": node.pop("$ref")}]
    return node


def _with_variables(node: Any) -> Any:
    """Return a schema that takes ``${NAME}`` for whatever is no free text."""
    if not isinstance(node, dict):
        return node
    changed = {
        key: value if key in _EXACT else _below(key, value, _with_variables) for key, value in node.items()
    }
    if not _is_narrow(node):
        return changed
    about = {key: changed.pop(key) for key in ("description", "default", "examples") if key in changed}
    return {**about, "anyOf": [changed, {"$ref": "#/$defs/Variable"}]}


def _is_narrow(node: dict[str, Any]) -> bool:
    """Whether a node is about a single value, and is more than free text or a list of forms."""
    is_fixed = node.get("type") in _NARROW or bool(_FIXED & node.keys())
    return is_fixed and "properties" not in node
