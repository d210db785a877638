"""Loads a YAML file and command-line overrides into a tree of typed, frozen dataclasses.

Independent of the agent: the caller's schema is a dataclass of dataclasses, one per section of the
file, with every field declared by `setting`. Each error is one line with the place, the expected
value, the value found and the most similar valid name.
"""

import dataclasses
import difflib
import fnmatch
import math
import os
import re
import reprlib
import sys
import typing

import yaml

# The largest whole number and the largest other number of a configuration: steps and rows are
# counted in 32 bits, and the square of a number must fit into float32.
MOST, LARGEST = 2**31 - 1, 1e18
NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"  # decimal alone: no 0x10, 1_0, 1:30


class ConfigError(ValueError):
    """A mistake of the user; its text is one clear line."""


def setting(meaning, low=None, high=None, above=None, below=None, choices=None):
    """A dataclass field without default: its meaning, inclusive and exclusive bounds, choices.

    No whole number is beyond ±MOST and no other beyond ±LARGEST, unless `below` says so."""
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    return dataclasses.field(metadata={"meaning": meaning, **bounds})


def load(path, schema, presets=(), sets=(), flags=()):
    """Load the file's defaults, then apply presets in order, then "section.key=value" strings.

    `flags` maps keys to the flags that set them, for messages.

    Raises: ConfigError."""
    flags = dict(flags)
    tree = read(path)
    blocks = _mapping(tree.pop("presets", None), f"{path}: presets")
    values = _sections(tree, schema, str(path), complete=True)
    overlays = {
        name: _sections(block, schema, f"{path}: preset {name}")
        for name, block in blocks.items()
    }
    for name in presets:
        if name not in overlays:
            near = nearest(name, overlays)
            raise ConfigError(f"--preset: unknown preset {name!r} in {path}{near}")
        _overlay(values, overlays[name])
    for text in sets:
        _overlay(values, _parse_set(text, schema, flags))
    types = typing.get_type_hints(schema)
    try:
        return schema(**{name: types[name](**section) for name, section in values.items()})
    except ValueError as error:  # of two numbers that do not fit each other
        keys = {text.partition("=")[0].strip() for text in sets}
        places = {flags.get(key, "--set") for key in keys if key in str(error)}
        raise ConfigError(f"{', '.join(sorted(places)) or path}: {error}") from None


def presets(path):
    """The names of the presets in a YAML file.

    Raises: ConfigError."""
    return list(_mapping(read(path).get("presets"), f"{path}: presets"))


def read(path):
    """Read the mapping in a YAML file with the safe loader.

    Raises: ConfigError for a file that is missing, unreadable, empty, broken or not a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = parse(file)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(path))
        names = [n for n in _listing(folder) if n.endswith((".yaml", ".yml"))]
        near = nearest(os.path.basename(path), names)
        raise ConfigError(f"{path or repr(path)}: no such file{near}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror.lower()})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}{_yaml_fault(error)}") from None
    if tree is None:
        raise ConfigError(f"{path}: is empty, expected a mapping of sections")
    return _mapping(tree, str(path))


def dump(config):
    """The resolved configuration as YAML text that `load` reads back equal."""
    tree = dataclasses.asdict(config)
    for section in tree.values():
        for key, value in section.items():
            section[key] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None)


def differences(config, text):
    """["section.key", ...] where a configuration differs from one dumped as `text`."""
    new, old = yaml.safe_load(dump(config)), yaml.safe_load(text)
    return [f"{section}.{key}" for section, keys in new.items() for key in keys
            if old.get(section, {}).get(key) != keys[key]]


def fixed(config, names):
    """Those of the names "section.key" that must stay the same in a run that is resumed."""
    return [name for name in names
            if not any(fnmatch.fnmatchcase(name, one) for one in config.MAY_CHANGE)]


def rows(config):
    """(section, key, meaning, value) of every field, in the order of declaration."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for field in dataclasses.fields(part):
            yield section.name, field.name, field.metadata["meaning"], getattr(part, field.name)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses duplicate keys and raises only YAML errors

    Numbers are decimal. What YAML 1.1 reads otherwise (010 as 8, 1:30 as 90) stays text."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # !!bool abc
            found = f"{show(getattr(node, 'value', None))} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(
                None, None, found, node.start_mark) from error

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {show(key.value)} occurs twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), "+-0123456789")
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(rf"({NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"), "+-.0123456789")


def parse(text):
    """Plain values from YAML text. Raises: yaml.YAMLError, RecursionError."""
    return yaml.load(text, Loader=_Loader)


def _yaml_fault(error):
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if isinstance(error, RecursionError):
        problem = "brackets nested too deeply"
    return f"{place}: is not valid YAML ({problem or 'unreadable characters'})"


def _listing(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []


def nearest(name, known):
    """A hint after an unknown name: the most similar known name, else all of them."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(str(k) for k in known)}" if known else ""


def _mapping(value, where):
    """Check that `value` is a mapping; a name without a value is an empty one."""
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping, found {show(value)}")
    return value or {}


def _overlay(values, newer):
    """Overwrite values in place; mappings are merged."""
    for section, keys in newer.items():
        for key, value in keys.items():
            old = values[section].get(key)
            both = isinstance(value, dict) and isinstance(old, dict)
            values[section][key] = old | value if both else value


def _sections(tree, schema, where, complete=False):
    """Check and convert {section: {key: value}}; `complete` requires every section and key."""
    tree, types = _mapping(tree, where), typing.get_type_hints(schema)
    for section in tree:
        if section not in types:
            raise ConfigError(f"{where}: unknown section {section!r}{nearest(section, types)}")
    if complete:
        for section in types:
            if section not in tree:
                raise ConfigError(f"{where}: the section {section!r} is missing")
    return {
        section: _keys(keys, types[section], f"{where}: {section}", complete)
        for section, keys in tree.items()
    }


def _keys(keys, schema, where, complete):
    keys = _mapping(keys, where)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    types = typing.get_type_hints(schema)
    for key in keys:
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown key{nearest(key, fields)}")
    for key, field in fields.items():
        if complete and key not in keys:
            raise ConfigError(f"{where}.{key}: is missing ({field.metadata['meaning']})")
    return {
        key: _value(value, types[key], fields[key].metadata, f"{where}.{key}")
        for key, value in keys.items()
    }


def _parse_set(text, schema, flags):
    path, equals, value = text.partition("=")
    section, dot, key = path.strip().partition(".")
    key, inside, name = key.partition(".")
    flag = flags.get(path.strip(), "--set")
    if not (equals and dot and section and key):
        known = [f"{part}.{field.name}" for part, kind in typing.get_type_hints(schema).items()
                 for field in dataclasses.fields(kind)]
        same = [one for one in known if one.partition(".")[2] == section]
        near = f"; did you mean {same[0]!r}?" if same and equals else ""
        raise ConfigError(f"{flag}: expected section.key=value, found {show(text)}{near}")
    try:
        parsed = parse(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{flag} {show(text)}{_yaml_fault(error)}") from None
    return _sections({section: {key: {name: parsed} if inside else parsed}}, schema, flag)


def _value(value, kind, bounds, where):
    """Convert `value` to `kind` and check its bounds; a quoted number becomes a number."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{where}: expected a list of whole numbers, found {show(value)}")
        return tuple(_value(item, int, {"low": 1}, where) for item in value)
    if kind is dict:
        return _entries(value, where)
    converted, most = _coerce(value, kind), {int: MOST, float: LARGEST}.get(kind, 0)
    if most and converted is not None and abs(converted) > most and bounds.get("below") is None:
        stated = {name: bound for name, bound in bounds.items() if bound is not None}
        bounds = {"low": -most, "high": most} | stated
    if converted is None or not _within(converted, bounds):
        raise ConfigError(f"{where}: expected {_expected(kind, bounds)}, found {show(value)}")
    return converted


def _entries(value, where):
    """Check a mapping of names to plain values, or to lists of them."""
    for name, entry in _mapping(value, where).items():
        if not isinstance(name, str) or not isinstance(entry, (bool, int, float, str, list)):
            raise ConfigError(f"{where}: expected names with numbers, booleans or lists, "
                              f"found {show(name)}: {show(entry)}")
    return {name: _number(entry, entry) for name, entry in (value or {}).items()}


def _number(value, otherwise):
    """The number in a text, such as a quoted '3e-4'; `otherwise` if it is none."""
    is_one = isinstance(value, str) and re.fullmatch(NUMBER, value.strip())
    return float(value) if is_one else otherwise


def _coerce(value, kind):
    """The value as `kind`; None where it cannot be converted."""
    if kind in (str, bool):
        return value if isinstance(value, kind) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        value = _number(value, math.nan)
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the range of floats
        number = sys.float_info.max if value > 0 else -sys.float_info.max
    if not math.isfinite(number):
        return None
    if kind is float:
        return number
    exact = value if isinstance(value, int) else number
    return int(exact) if exact == int(exact) else None


def _within(value, bounds):
    tests = {
        "low": lambda bound: value >= bound,
        "high": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
        "choices": lambda bound: value in bound,
    }
    return all(tests[name](bound) for name, bound in bounds.items()
               if name in tests and bound is not None)


def _expected(kind, bounds):
    if bounds.get("choices"):
        return "one of " + ", ".join(bounds["choices"])
    words = {"low": "at least", "above": "more than", "high": "at most", "below": "less than"}
    limits = [f"{word} {bounds[name]}" for name, word in words.items()
              if bounds.get(name) is not None]
    name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
    return " ".join([name, " and ".join(limits)]).strip()


def show(value):
    """A value in a message: in quotes, without control characters, at most 80 characters."""
    short = reprlib.Repr()  # which also stops inside of nested values
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, 78, 78, 40
    text = "nothing" if value is None else short.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
