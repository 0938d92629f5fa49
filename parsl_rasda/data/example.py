"""TensorFlow's records ``tf.train.Example``: features by name, read by protobuf without TensorFlow.

Source:
    TensorFlow, ``core/example/{example,feature}.proto``. In bytes, a map is a list of its entries.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

Values: TypeAlias = list[bytes | float | int]  # all of one type
_LISTS = {"BytesList": "BYTES", "FloatList": "FLOAT", "Int64List": "INT64"}
_MESSAGES = {
    "Feature": [(name, name, "OPTIONAL") for name in _LISTS],
    "Entry": [("key", "STRING", "OPTIONAL"), ("value", "Feature", "OPTIONAL")],
    "Features": [("feature", "Entry", "REPEATED")],
    "Example": [("features", "Features", "OPTIONAL")],
}


def features_of(record: bytes) -> dict[str, Values]:
    """Return the features of a record.

    Raises:
        ValueError: If it is not such a record.
    """
    from google.protobuf.message import DecodeError

    try:
        entries = _example().FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return {entry.key: _values(entry.value) for entry in entries}


def _values(feature: Any) -> Values:
    return next((list(values.value) for _, values in feature.ListFields()), [])


@cache
def _example() -> Any:
    """Return the class of the messages (protobuf is untyped)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow")
    lists = {name: [("value", kind, "REPEATED")] for name, kind in _LISTS.items()}
    for name, fields in {**lists, **_MESSAGES}.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, label) in enumerate(fields, start=1):
            is_message = kind in {*_LISTS, *_MESSAGES}
            message.field.add(
                name=field,
                number=number,
                label=f"LABEL_{label}",
                type="TYPE_MESSAGE" if is_message else f"TYPE_{kind}",
                type_name=f".tensorflow.{kind}" if is_message else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
