"""The command line: flags, presets and --set in front of one YAML file."""

import argparse
import sys
from pathlib import Path

from utils import config as configuration

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "dreamer.yaml"


def parse(argv, schema, description):
    """The resolved configuration and the folder asked for, from the command line.

    `--help` and `--print-config` print and leave with status 0.

    Raises: ConfigError."""
    parser = _parser(description)
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [name for action in parser._actions for name in action.option_strings]
        near = configuration.nearest(unknown[0], names)
        raise configuration.ConfigError(f"{unknown[0]}: unknown flag{near}")
    path = flags.config or _default_config()
    sets = list(flags.set) + [
        f"run.{key}={value}"
        for key, value in (("env", flags.env), ("seed", flags.seed), ("steps", flags.steps))
        if value is not None
    ]
    config = configuration.load(path, schema, flags.preset, sets)
    if flags.help:
        print(parser.format_help() + "\n" + _table(config))
        sys.exit(0)
    if flags.print_config:
        print(configuration.dump(config), end="")
        sys.exit(0)
    return config, flags.logdir


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, without the usage in front of it."""

    def error(self, message):
        """A mistake in the flags, as every other mistake of the user's: ConfigError."""
        raise configuration.ConfigError(message)


def _parser(description):
    parser = _Parser("dreamer.py", description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE",
                        help="YAML file with every number (default: dreamer.yaml)")
    parser.add_argument("--env", metavar="ID", help="Gymnax environment (run.env)")
    parser.add_argument("--seed", metavar="N", help="seed of all randomness (run.seed)")
    parser.add_argument("--steps", metavar="N", help="environment steps (run.steps)")
    parser.add_argument("--preset", metavar="NAME", action="append", default=[],
                        help="overlay a named block of the file; may be repeated, the last wins")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[],
                        help="change one number; may be repeated, wins over presets")
    parser.add_argument("--logdir", metavar="DIR",
                        help="folder of the run (default: runs/<env>-<seed>-<time>)")
    parser.add_argument("--print-config", action="store_true",
                        help="print the resolved configuration and leave")
    parser.add_argument("-h", "--help", action="store_true",
                        help="print this, with every hyperparameter, and leave")
    return parser


def _default_config():
    """dreamer.yaml of this folder, else the one beside the program."""
    return "dreamer.yaml" if Path("dreamer.yaml").exists() else DEFAULT_CONFIG


def _table(config):
    """Every hyperparameter: name, value, the paper's value, meaning."""
    paper = configuration.read(DEFAULT_CONFIG)["presets"]["paper"]
    lines = [f"{'hyperparameter':32}{'value':>16}{'paper':>16}  meaning"]
    for section, key, meaning, value in configuration.rows(config):
        shown = paper[section].get(key, "-")
        lines.append(f"{section + '.' + key:32}{_show(value):>16}{_show(shown):>16}  {meaning}")
    return "\n".join(lines)


def _show(value):
    if isinstance(value, (tuple, list)):
        return ",".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
