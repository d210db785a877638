"""The command line: flags, presets and --set in front of one YAML file."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import config as configuration
from utils.settings import MAY_CHANGE

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "dreamer.yaml"

WORLD_MODEL = "world_model"  # the preset of --world-model-only
TOOLS = ("eval", "watch")  # flags that look at a run instead of training one
LIST, EXPLAIN = "list_envs", "explain"  # flags, and tools, that need no run


@dataclass(frozen=True)
class Command:
    """What the user asked for: train (`tool` None), anew or from the folder `run`, or a tool.

    `config` and `run` are None for the tool `LIST`, `run` for the tool `EXPLAIN`."""

    config: Any
    seeds: int  # agents side by side
    logdir: str | None
    run: str | None
    tool: str | None
    world_model_only: bool  # no behaviour is learned, and pictures are drawn at the end


def parse(argv, schema, description):
    """The Command in a command line.

    `--help` and `--print-config` print and leave with status 0.

    Raises: ConfigError."""
    parser = _parser(description)
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [name for action in parser._actions for name in action.option_strings]
        near = configuration.nearest(unknown[0], names)
        raise configuration.ConfigError(f"{unknown[0]}: unknown flag{near}")
    if flags.list_envs:
        return Command(None, 1, None, None, LIST, False)
    task, run = _existing_run(flags)
    if flags.explain:
        _check_explain(flags, task)
    if flags.world_model_only and (task or flags.seeds):
        raise configuration.ConfigError(
            f"--world-model-only: cannot be used with --{task or 'seeds'}")
    path = flags.config or (Path(run) / "config.yaml" if run else _default_config())
    config = _config(path, schema, flags)
    if run:
        configuration.load(Path(run) / "config.yaml", schema)  # if it is broken, that is said
        check_unchanged(config, (Path(run) / "config.yaml").read_text(encoding="utf-8"), task, run)
    if flags.help:
        print(parser.format_help() + "\n" + _table(config))
        sys.exit(0)
    if flags.print_config:
        print(configuration.dump(config), end="")
        sys.exit(0)
    seeds = _seeds(flags.seeds, config, task)
    tool = EXPLAIN if flags.explain else task if task in TOOLS else None
    return Command(config, seeds, flags.logdir, run, tool, flags.world_model_only)


def _check_explain(flags, task):
    """Is --explain alone with what makes a configuration? ConfigError."""
    others = {task: task, "logdir": flags.logdir, "seeds": flags.seeds,
              "world-model-only": flags.world_model_only}
    for flag, given in others.items():
        if given:
            raise configuration.ConfigError(f"--explain: cannot be used with --{flag}")


def _config(path, schema, flags):
    """The file's numbers with all that the flags change in them.

    The block of the environment, where the file has one, is overlaid first."""
    sets = list(flags.set) + [
        f"run.{key}={value}" for key, value in (
            ("env", flags.env), ("seed", flags.seed), ("steps", flags.steps),
            ("save_replay", flags.save_replay), ("eval_episodes", flags.episodes))
        if value is not None
    ] + [_env_param(text) for text in flags.env_param]
    presets = flags.preset + [WORLD_MODEL] * flags.world_model_only
    config = configuration.load(path, schema, presets, sets)
    if config.run.env in configuration.presets(path):
        config = configuration.load(path, schema, [config.run.env, *presets], sets)
    if flags.world_model_only:
        _check_world_model_only(config.learning)
    return config


def _check_world_model_only(learning):
    """Is a policy learned all the same? ConfigError."""
    for key in ("beta_actor", "beta_critic", "beta_replay"):
        if scale := getattr(learning, key):
            raise configuration.ConfigError(
                f"--world-model-only: expected learning.{key} 0, found {scale:g}")


def _env_param(text):
    """--env-param key=value as --set has it."""
    key, equals, value = text.partition("=")
    if not (key.strip().isidentifier() and equals and value.strip()):
        raise configuration.ConfigError(f"--env-param: expected key=value, found {text!r}")
    return f"run.env_params.{key.strip()}={value}"


def _seeds(text, config, task):
    """The number of agents that --seeds asks for."""
    if text is None:
        return 1
    if task:
        raise configuration.ConfigError(f"--seeds: cannot be used with --{task}")
    most = 2**32 - config.run.seed
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise configuration.ConfigError(
            f"--seeds: expected a whole number from 1 to {most}, found {text!r}")
    return int(text)


def _existing_run(flags):
    """(flag, folder) of the run that the flags name, (None, None) for a new one."""
    named = [(flag, getattr(flags, flag)) for flag in MAY_CHANGE
             if getattr(flags, flag) is not None]
    if not named:
        return None, None
    task, run = named[0]
    if len(named) > 1:
        raise configuration.ConfigError(f"--{named[1][0]}: cannot be used with --{task}")
    if flags.logdir:
        raise configuration.ConfigError(f"--logdir: --{task} stays in the folder of the run")
    if flags.preset:
        raise configuration.ConfigError(f"--preset: cannot be used with --{task}")
    if not run or Path(run).is_file():
        raise configuration.ConfigError(f"--{task}: expected the folder of a run, found {run!r}")
    if not Path(run).is_dir():
        near = configuration.nearest(Path(run).name, _runs_in(Path(run).parent))
        raise configuration.ConfigError(f"--{task}: {run}: no such folder{near}")
    if not (Path(run) / "config.yaml").is_file():
        inside = ", ".join(_runs_in(run))
        raise configuration.ConfigError(f"--{task}: {run}: holds no run (no config.yaml)"
                                        + (f"; those inside it: {inside}" if inside else ""))
    return task, run


def _runs_in(folder):
    return sorted(path.parent.name for path in Path(folder).glob("*/config.yaml"))


def check_unchanged(config, text, task, run):
    """Is `config` that of the run, dumped as `text`, but for what may change in this task?

    Raises: ConfigError naming the keys that differ."""
    allowed = MAY_CHANGE[task]
    changed = [name for name in configuration.differences(config, text) if name not in allowed]
    if changed:
        raise configuration.ConfigError(
            f"--{task}: {run}: was made with another {', '.join(changed)}; "
            f"only {', '.join(allowed)} may change")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, without the usage in front of it."""

    def error(self, message):
        """A mistake in the flags, as every other mistake of the user's: ConfigError."""
        raise configuration.ConfigError(message)


def complain(error, program="dreamer.py"):
    """Say what is wrong, in one line -> exit status 2; the error is a ValueError or an OSError."""
    print(f"{program}: {reason(error)}", file=sys.stderr)
    return 2


def reason(error, folder=None):
    """One line for an error: an OSError's file (or else the folder) and what is wrong with it."""
    if not isinstance(error, OSError):
        return str(error)
    place = error.filename or folder
    said = (error.strerror or str(error)).lower()
    return f"{place}: {said}" if place else said


def _parser(description):
    parser = Parser("dreamer.py", description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE",
                        help="YAML file with every number (default: dreamer.yaml)")
    parser.add_argument("--env", metavar="ID", help="Gymnax environment, or your own "
                        "package.module:factory (run.env)")
    parser.add_argument("--env-param", metavar="KEY=VALUE", action="append", default=[],
                        help="change a parameter of the environment (run.env_params); may repeat")
    parser.add_argument("--list-envs", action="store_true",
                        help="print the environments of Gymnax and their reference scores")
    parser.add_argument("--seed", metavar="N", help="seed of all randomness (run.seed)")
    parser.add_argument("--seeds", metavar="N",
                        help="train N agents side by side, from run.seed on (default: 1)")
    parser.add_argument("--steps", metavar="N", help="environment steps (run.steps)")
    parser.add_argument("--preset", metavar="NAME", action="append", default=[],
                        help="overlay a named block of the file; may be repeated, the last wins")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[],
                        help="change one number; may be repeated, wins over presets")
    parser.add_argument("--logdir", metavar="DIR",
                        help="folder of the run (default: runs/<env>-<seed>-<time>)")
    parser.add_argument("--save-replay", metavar="BOOL", choices=("true", "false"),
                        help="false: small checkpoints, without the replay (run.save_replay)")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--eval", metavar="RUN",
                        help="score the weights of this run over fresh episodes, and leave")
    parser.add_argument("--episodes", metavar="N",
                        help="episodes of an evaluation (run.eval_episodes)")
    parser.add_argument("--watch", metavar="RUN", help="film an episode of this run, and leave")
    parser.add_argument("--explain", action="store_true",
                        help="print one update, quantity by quantity, and leave")
    parser.add_argument("--world-model-only", action="store_true",
                        help="learn no behaviour, and draw what the world model dreams")
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
        shown = paper.get(section, {}).get(key, "-")
        lines.append(f"{section + '.' + key:32}{_show(value):>16}{_show(shown):>16}  {meaning}")
    return "\n".join(lines)


def _show(value):
    if isinstance(value, (tuple, list)):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict):
        return ",".join(f"{name}={_show(entry)}" for name, entry in value.items()) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
