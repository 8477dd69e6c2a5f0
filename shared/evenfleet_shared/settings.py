"""Load a configuration: defaults, then a TOML file, then the environment, then the command line.

The configuration's type is the one description of it: a frozen dataclass of frozen dataclasses, with units in its
field names and the defaults in code. This module knows no particular configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from evenfleet_shared.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

# How msgspec says that a value has the wrong type or is out of bounds, and the same in words.
_EXPECTED = re.compile(r"Expected `(?P<kind>.+?)`(?P<bound>.*?)(, got `(?P<found>.+)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>.+)`")
_NOT_AMONG = "Invalid enum value "
_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
    "object": "a table of settings",
    "array": "a list",
}
_BOUNDS = {
    " >= ": " of at least",
    " > ": " above",
    " <= ": " of at most",
    " < ": " below",
    " of length >= ": " with a length of at least",
    " of length <= ": " with a length of at most",
    " matching regex ": " that matches",
}
_MAX_FOUND = 120

ENVIRONMENT_PREFIX = "EVENFLEET_"

# One step of a path: a name, or the number of an element.
_STEP = re.compile(r"([^.\[\]]+)(?=[.\[]|$)|\[(\d+)\]")

# Where msgspec says that a value is wrong.
_PLACE = re.compile(r"at `\$\.([\w.]+)")


def load(
    settings_type: type[T],
    file: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, Any],
    *,
    typed: str = "the command line",
) -> T:
    """Return the settings.

    Args:
        settings_type: A dataclass; a nested dataclass is a table of the file.
        file: A TOML file, or None.
        environment: ``EVENFLEET_WINDOW__LENGTH_S`` sets ``window.length_s``, with a list or a table as TOML has it. One that
            almost names a setting of a table is refused; other variables are left alone.
        overrides: From the command line, as ``{"window.length_s": 5.0}``; None leaves the setting as it is.
        typed: What errors call the place that `overrides` come from.

    Raises:
        ConfigError: A file that cannot be read, an unknown key (the near match is named), a value where a table belongs
            or the reverse, or a value out of bounds; the file or the variable that it comes from is named.
    """
    values: dict[str, Any] = {}
    source = str(file) if file else typed
    if file:
        values = _read(file)
        # Before anything is put into its tables: they may not be tables.
        _refuse_unknown(settings_type, values, source, "")
    sources: dict[str, str] = {}
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name[len(ENVIRONMENT_PREFIX) :].lower().split("__")
            if _knows(settings_type, path):
                _refuse_table(settings_type, path, name)
                _put(values, path, _from_text(text))
                sources[".".join(path)] = name
            elif len(path) > 1 and path[0] in _tables(settings_type):
                _refuse_near_miss(settings_type, path, name)
    for dotted, value in overrides.items():
        if value is not None:
            _put(values, dotted.split("."), value)
            sources[dotted] = typed
    _refuse_unknown(settings_type, values, source, "")
    try:
        # Not strict: the environment has only text.
        return msgspec.convert(values, settings_type, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        at = _PLACE.search(str(error))
        if at and str(error).startswith(_NOT_AMONG):
            said = str(error).removeprefix(_NOT_AMONG).partition(" - at ")[0]
            words = ", ".join(map(str, _allowed(settings_type, at[1].split("."))))
            raise ConfigError(f"{sources.get(at[1], source)}: {at[1]} is {said}, must be one of {words}") from None
        raise ConfigError(f"{sources.get(at[1], source) if at else source}: {explain(error, values)}") from None


def explain(error: Exception, values: Any) -> str:
    """Return in a person's words what the decoder has against `values`: which one, what was expected, what was found.

    >>> explain(ValueError("Expected `float` >= 0.1 - at `$.window.length_s`"), {"window": {"length_s": -1}})
    'window.length_s: expected a number of at least 0.1, found -1'
    """
    said, _, path = str(error).rpartition(" - at `$.")
    path = path.removesuffix("`")
    missing = _MISSING.fullmatch(said or str(error))
    if missing is not None:
        return f"{path + '.' if said else ''}{missing['name']} is not set, and has no default"
    wrong = _EXPECTED.fullmatch(said or str(error))
    if wrong is None:
        return f"{path}: {said}" if said else str(error)
    expected = _KINDS.get(wrong["kind"], wrong["kind"])
    for sign, words in _BOUNDS.items():
        if wrong["bound"].startswith(sign):
            expected += f"{words} {wrong['bound'].removeprefix(sign)}"
    found = values
    for name, number in _STEP.findall(path):
        # As deep as there are names and numbers.
        if name and isinstance(found, dict):
            found = found.get(name, wrong["found"])
        elif number and isinstance(found, list | tuple):
            found = found[int(number)]
    return f"{path + ': ' if said else ''}expected {expected}, found {_short(found)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_FOUND else f"{text[:_MAX_FOUND]}…"


def example(settings_type: type[Any], comments: Mapping[str, str]) -> str:
    """Return a commented TOML file that holds every setting with its default.

    Args:
        settings_type: The dataclass; settings without a default are shown with an empty text.
        comments: What a setting means, by its dotted name.
    """
    return "\n".join(_example_lines(settings_type, comments, "")) + "\n"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _knows(settings_type: type[Any], path: list[str]) -> bool:
    tables = _tables(settings_type)
    names = {field.name for field in dataclasses.fields(settings_type)}
    if path[0] not in names:
        return False
    return len(path) == 1 or (path[0] in tables and _knows(tables[path[0]], path[1:]))


def _refuse_near_miss(settings_type: type[Any], path: list[str], variable: str) -> None:
    """Refuse a variable that almost names a setting of a table; one that names nothing like it may be another program's."""
    known = [field.name for field in dataclasses.fields(_tables(settings_type)[path[0]])]
    near = difflib.get_close_matches(path[1], known, n=1)
    if near:
        meant = f"{ENVIRONMENT_PREFIX}{path[0]}__{near[0]}".upper()
        raise ConfigError(f"{variable}: {'.'.join(path)} is no setting; did you mean {meant}?")


def _from_text(text: str) -> Any:
    """Return what a variable says: a list or a table where it is written as one of TOML, else the text."""
    if text[:1] not in ("[", "{"):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_table(settings_type: type[Any], path: list[str], variable: str) -> None:
    """Refuse a variable that gives text to a whole table; `path` is known."""
    for name in path:
        table = _tables(settings_type).get(name)
        if table is None:
            return
        settings_type = table
    settings = ", ".join(f"{variable}__{field.name.upper()}" for field in dataclasses.fields(settings_type))
    raise ConfigError(f"{variable}: {'.'.join(path)} is a table of settings, found text; set {settings}")


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _refuse_unknown(settings_type: type[Any], values: dict[str, Any], source: str, prefix: str) -> None:
    names = [field.name for field in dataclasses.fields(settings_type)]
    tables, lists = _tables(settings_type), _lists_of_tables(settings_type)
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(names)}"
            raise ConfigError(f"{source}: unknown setting {prefix}{key}; {hint}")
        if key in tables:
            if not isinstance(value, dict):
                inside = ", ".join(f"{prefix}{key}.{field.name}" for field in dataclasses.fields(tables[key]))
                raise ConfigError(f"{source}: {prefix}{key} must be a table, found {value!r}; it holds {inside}")
            _refuse_unknown(tables[key], value, source, f"{prefix}{key}.")
        if key in lists and isinstance(value, list):
            for number, element in enumerate(value):
                if isinstance(element, dict):
                    _refuse_unknown(lists[key], element, source, f"{prefix}{key}[{number}].")


def _allowed(settings_type: type[Any], path: list[str]) -> tuple[Any, ...]:
    """Return the values of a setting that takes only some."""
    for name in path[:-1]:
        settings_type = _tables(settings_type)[name]
    return get_args(get_type_hints(settings_type)[path[-1]])


def _tables(settings_type: type[Any]) -> dict[str, type[Any]]:
    hints = get_type_hints(settings_type)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint) and isinstance(hint, type)}


def _lists_of_tables(settings_type: type[Any]) -> dict[str, type[Any]]:
    """Return what the elements of a setting are, of those that are lists of tables."""
    found = {}
    for name, hint in get_type_hints(settings_type).items():
        element = next(iter(get_args(hint)), None)
        if get_origin(hint) in {tuple, list} and isinstance(element, type) and dataclasses.is_dataclass(element):
            found[name] = element
    return found


def _example_lines(settings_type: type[Any], comments: Mapping[str, str], prefix: str) -> list[str]:
    lines: list[str] = []
    tables = _tables(settings_type)
    plain = [field for field in dataclasses.fields(settings_type) if field.name not in tables]
    for field in plain:
        dotted = f"{prefix}{field.name}"
        comment = comments.get(dotted)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            default = ""
        assignment = f"{field.name} = {_toml(default)}" if default is not None else f"# {field.name} ="
        lines.append(f"{assignment}  # {comment}" if comment else assignment)
    for name, table in tables.items():
        lines += ["", f"[{prefix}{name}]", *_example_lines(table, comments, f"{prefix}{name}.")]
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
