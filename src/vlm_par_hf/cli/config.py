"""`--config FILE`: options of a command from a YAML or JSON file; what is on the command line goes first.

A file holds one flat mapping from the names of options to values, with `-` or `_` in the names:

    dataset: folder
    root: my_data
    learning-rate: 0.001
    progress: false

The record of a run, `run.json`, is such a file for `train`: its command, with all settings that it had.
"""

import argparse
import difflib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.utils import read_json, shorten


__all__ = ["add_config_option", "expand_config"]

_MAX_BYTES = 1 << 20
_NOT_IN_FILES = ("help", "config", "run")


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` to the parser of a command."""
    parser.add_argument(
        "--config", metavar="FILE",
        help="YAML or JSON file with any of these options by name; the command line goes first (for train also the "
        "run.json of a run)",
    )  # fmt: skip


def expand_config(arguments: Sequence[str], build_parser: Callable[[], argparse.ArgumentParser]) -> list[str]:
    """A command line without `--config`, with the options of the file in its place.

    Args:
        arguments: the command and its options.
        build_parser: makes the parser with all commands, whose options have their defaults.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping, or holds an unknown name or a value of another kind; the message names both.
        SystemExit: the command line itself is wrong.
    """
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--config", action="append")
    found, _ = finder.parse_known_args(list(arguments))
    if not found.config or any(word in ("-h", "--help") for word in arguments):
        return list(arguments)
    if len(found.config) > 1:
        raise ParValueError(f"--config is given {len(found.config)} times; expected one file")
    path = Path(found.config[0])
    top = build_parser()
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    command = next((word for word in arguments if word in commands.choices), None)
    if command is None:
        return list(arguments)  # the parser says what is wrong
    parser = commands.choices[command]
    values = _values(path, command, parser, build_parser)
    given = _given(top, parser, arguments)
    for group in parser._mutually_exclusive_groups:
        names = {action.dest for action in group._group_actions}
        if names & given.keys():
            values = {name: value for name, value in values.items() if name not in names}
    return [command, *_words(parser, {**values, **given})]


def _values(path: Path, command: str, parser, build_parser) -> dict[str, Any]:
    data = _read(path)
    if {"settings", "data", "model", "command"} <= data.keys():
        data = _of_a_run(path, data, command, build_parser)
    actions = {action.dest: action for action in parser._actions if action.dest not in _NOT_IN_FILES}
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in actions:
            near = difflib.get_close_matches(name[:100], actions, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(actions))[:1000]}"
            raise ParValueError(f"config file {path}: vlm-par {command} has no option {shorten(key)}{hint}")
        if name in values:
            raise ParValueError(f"config file {path}: {name!r} is there twice, with - and with _")
        if value is not None:
            values[name] = _check(path, actions[name], value)
    return values


def _check(path: Path, action: argparse.Action, value: Any) -> Any:
    is_flag = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
    takes_several = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")
    who = f"config file {path}: {action.dest} is {shorten(value)}"
    if is_flag:
        if not isinstance(value, bool):
            raise ParValueError(f"{who}; expected true or false")
        return value
    if takes_several:
        value = value if isinstance(value, list) else [value]
    parts = value if takes_several else [value]
    if not parts or any(isinstance(part, bool) or not isinstance(part, (str, int, float)) for part in parts):
        expected = "a list of texts or numbers" if takes_several else "one text or number"
        raise ParValueError(f"{who}; expected {expected}")
    for part in parts:
        try:
            converted = part if action.type is None else action.type(str(part))
        except (ValueError, TypeError):
            raise ParValueError(f"{who}; expected {getattr(action.type, '__name__', 'another value')}") from None
        if action.choices is not None and converted not in action.choices:
            raise ParValueError(f"{who}; expected one of {', '.join(map(str, action.choices))}")
    return value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ParFileNotFoundError(f"config file {path} does not exist; expected a YAML or JSON file with options")
    if path.stat().st_size > _MAX_BYTES:
        raise ParValueError(f"config file {path} has {path.stat().st_size} bytes; expected at most {_MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = read_json(text) if path.suffix.lower() == ".json" else _read_yaml(text)
    except ValueError as error:
        raise ParValueError(f"config file {path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ParValueError(f"config file {path} holds {shorten(data)}; expected 'name: value' lines")
    return data


def _read_yaml(text: str) -> Any:
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        """Of two values for one key the last would win silently."""

        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ParValueError(f"the key {shorten(twice)} appears twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader=UniqueKeys)
    except (yaml.YAMLError, RecursionError) as error:
        raise ParValueError(" ".join(str(error).split())) from None


def _of_a_run(path: Path, record: Mapping[str, Any], command: str, build_parser) -> dict[str, Any]:
    """The options of a run: those of its command, and all of its settings, whose defaults may have changed since."""
    if command != "train":
        raise ParValueError(f"config file {path} is the record of a training run; expected it for vlm-par train")
    words = shlex.split(str(record["command"]))
    if words[:2] != ["vlm-par", "train"]:
        raise ParValueError(
            f"config file {path}: its run was not started by vlm-par train but by {shorten(record['command'])}, so "
            "its data and model are not known as options"
        )
    hidden = next((word for word in words if "***" in word), None)
    if hidden is not None:
        raise ParValueError(f"config file {path}: its command hides a secret in {shorten(hidden)}: write it yourself")
    # Records have `~` in place of the home folder.
    words = [os.path.expanduser(word) for word in words]
    top = build_parser()
    parser = next(one for one in top._actions if isinstance(one, argparse._SubParsersAction)).choices["train"]
    return {**_given(top, parser, words[1:]), **dict(record["settings"])}


def _given(top: argparse.ArgumentParser, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command line says itself, by the names of its options. The parsers are changed."""
    for action in parser._actions:
        if action.dest == "help":
            continue
        action.default, action.required = argparse.SUPPRESS, False
        if not action.option_strings:
            action.nargs = "*" if action.nargs == "+" else "?" if action.nargs is None else action.nargs
    found = vars(top.parse_args(list(arguments)))
    return {name: value for name, value in found.items() if name not in _NOT_IN_FILES}


def _words(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    places: list[str] = []
    words: list[str] = []
    for action in parser._actions:
        if action.dest not in values:
            continue
        value = values[action.dest]
        if not action.option_strings:
            places += map(str, value) if isinstance(value, list) else [str(value)]
            continue
        name = next(one for one in action.option_strings if one.startswith("--"))
        if isinstance(action, argparse.BooleanOptionalAction):
            words.append(name if value else f"--no-{name.removeprefix('--')}")
        elif action.nargs == 0:
            words += [name] if value else []
        elif isinstance(value, list):
            words += (f"{name}={one}" for one in value)
        else:
            words.append(f"{name}={value}")
    return [*places, *words]
