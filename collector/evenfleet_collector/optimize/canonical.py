"""Rewrite a SavedModel's graph so that its bytes tell nothing of the process that wrote it.

TensorFlow numbers functions, captured variables and custom gradients through the life of a process, and lists them in the order of a hash
table. Here they are numbered and listed by first appearance, from the graph down through what it calls.

* What the model computes, and every name that is not numbered by the process, stays as it is.
* Two SavedModels that differ in those numbers and orders alone become the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any, Final

# The counters' own patterns; loading strips them by the same (`function_deserialization._clean_function_name`).
_NUMBERED: Final = re.compile(r"(__(?:inference|forward|backward)_.*_|CustomGradient-)\d+", re.DOTALL)
# What an argument is called; a captured variable by a number that the process counts.
_CAPTURE: Final = "_user_specified_name"
# Longer ones are constants, not names.
_LONGEST_NAME: Final = 1000


def rewrite(saved_model_file: Path) -> None:
    """Rewrite ``saved_model.pb`` in place."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(saved_model_file.read_bytes())
    for meta_graph in saved.meta_graphs:
        _renumber(meta_graph)
    saved_model_file.write_bytes(saved.SerializeToString(deterministic=True))


def _renumber(meta_graph: Any) -> None:
    library = meta_graph.graph_def.library
    for function in library.function:
        for place, argument in function.arg_attr.items():
            name = argument.attr.get(_CAPTURE)
            if name is not None and name.s.isdigit():
                name.s = str(place).encode()
    order = {name: place for place, name in enumerate(_by_first_appearance(meta_graph))}
    new_names: dict[str, str] = {}
    for name in order:
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            new_names[name] = f"{match[1]}{len(new_names)}"
    functions = sorted(library.function, key=lambda function: order[function.signature.name])
    gradients = sorted(library.registered_gradients, key=lambda gradient: order[gradient.registered_op_type])
    for listed, by_appearance in ((library.function, functions), (library.registered_gradients, gradients)):
        copies = [type(one).FromString(one.SerializeToString()) for one in by_appearance]
        del listed[:]
        listed.extend(copies)
    _rename(meta_graph, new_names)


def _by_first_appearance(meta_graph: Any) -> list[str]:
    """Return the names of all functions and numbered gradients: callers before what they call."""
    library = meta_graph.graph_def.library
    bodies = {function.signature.name: function for function in library.function}
    gradients = {gradient.registered_op_type: gradient.gradient_func for gradient in library.registered_gradients}
    found: dict[str, None] = {}

    def meet(message: Any) -> None:
        for text in _texts(message):
            if text in found or not (text in bodies or _NUMBERED.fullmatch(text)):
                continue
            found[text] = None
            if text in gradients:
                meet(bodies[gradients[text]])
            if text in bodies:
                meet(bodies[text])

    for node in meta_graph.graph_def.node:
        meet(node)
    for node in meta_graph.object_graph_def.nodes:
        meet(node)
    # What nothing calls: told apart by what it does.
    for function in sorted(library.function, key=_without_numbers):
        meet(function)
    for gradient in sorted(library.registered_gradients, key=_without_numbers):
        meet(gradient)
    return list(found)


def _without_numbers(message: Any) -> list[str]:
    return [_NUMBERED.sub(r"\1", text) for text in _texts(message)]


def _texts(message: Any) -> Iterator[str]:
    """Yield every string below a message, in the order of its fields; maps by key."""
    for _, value in message.ListFields():
        if isinstance(value, MutableMapping):
            for key in sorted(value):
                yield from _texts_of(key)
                yield from _texts_of(value[key])
        elif isinstance(value, MutableSequence):
            for one in value:
                yield from _texts_of(one)
        else:
            yield from _texts_of(value)


def _texts_of(value: Any) -> Iterator[str]:
    if hasattr(value, "ListFields"):
        yield from _texts(value)
    elif isinstance(value, str | bytes) and len(value) <= _LONGEST_NAME:
        yield value if isinstance(value, str) else value.decode("latin-1")


def _rename(message: Any, new_names: dict[str, str]) -> None:
    for field, value in message.ListFields():
        if isinstance(value, MutableMapping):
            _rename_map(value, new_names)
        elif isinstance(value, MutableSequence):
            for place, one in enumerate(value):
                if hasattr(one, "ListFields"):
                    _rename(one, new_names)
                elif isinstance(one, str | bytes):
                    value[place] = _renamed(one, new_names)
        elif hasattr(value, "ListFields"):
            _rename(value, new_names)
        elif isinstance(value, str | bytes):
            setattr(message, field.name, _renamed(value, new_names))


def _rename_map(entries: Any, new_names: dict[str, str]) -> None:
    """Rename keys and values. All at once: a new name may be another's old one."""
    of_messages = any(hasattr(value, "ListFields") for value in entries.values())
    taken = [
        (key, type(value).FromString(value.SerializeToString()) if of_messages else value)
        for key, value in entries.items()
    ]
    entries.clear()
    for key, value in taken:
        new_key = _renamed(key, new_names) if isinstance(key, str) else key
        if of_messages:
            _rename(value, new_names)
            entries[new_key].CopyFrom(value)
        else:
            entries[new_key] = _renamed(value, new_names) if isinstance(value, str | bytes) else value


def _renamed(text: str | bytes, new_names: dict[str, str]) -> str | bytes:
    if len(text) > _LONGEST_NAME:
        return text
    if isinstance(text, bytes):
        name = text.decode("latin-1")
        return new_names[name].encode("latin-1") if name in new_names else text
    return new_names.get(text, text)
