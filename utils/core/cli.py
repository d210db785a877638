"""The command line of dreamer.py, and the parts that the other commands share."""

import argparse
import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.core import config as configuration
from utils.core import start
from utils.core.config import ConfigError
from utils.core.settings import Config

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "dreamer.yaml"
GYMNASIUM = "gymnasium"  # in front of its ids, and the preset of what the host steps
DREAMER4 = "dreamer4.py"  # the other program, whose runs some commands read, too
WORLD_MODEL = "world_model"  # the preset of --world-model-only
WIDEST = 200  # columns of a message
# Flags of older versions, and the commands that replaced them.
REPLACED = {"--eval": "python -m utils.evaluate RUN", "--watch": "python -m utils.watch RUN",
            "--explain": "python -m utils.explain"}

# Flags that set a key of the section `run`.
FLAGS = {"env": "env", "seed": "seed", "steps": "steps", "save_replay": "save_replay",
         "episodes": "eval_episodes"}


@dataclass(frozen=True)
class Command:
    """A parsed command line: start a new run, or resume the one in the folder `run`.

    With `list_envs`, print the table of environments instead."""

    config: Config | None
    seeds: int = 1  # agents trained in parallel
    logdir: str | None = None
    run: str | None = None
    list_envs: bool = False


def parse(argv=None):
    """Parse a command line into a Command.

    `--help` and `--print-config` print and exit with status 0.

    Raises: ConfigError."""
    parser = _parser()
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(unknown_flag(unknown[0], parser))
    if flags.list_envs:
        return Command(None, list_envs=True)
    if flags.resume is not None:
        _check_resume(flags)
    if flags.world_model_only and (flags.resume or flags.seeds):
        other = "resume" if flags.resume else "seeds"
        raise ConfigError(f"--world-model-only: cannot be used with --{other}")
    config = _config(flags)
    if flags.help:
        print(parser.format_help() + "\n" + table(config, DEFAULT_CONFIG))
        sys.exit(0)
    if flags.print_config:
        print(configuration.dump(config), end="")
        sys.exit(0)
    return Command(config, _seeds(flags, config), flags.logdir, flags.resume)


def unknown_flag(flag, parser):
    """The message for an unknown flag; some old flags were replaced by commands."""
    name = flag.partition("=")[0]
    if name in REPLACED:
        return f"{name}: is a separate command now: {REPLACED[name]}"
    names = [name for action in parser._actions for name in action.option_strings]
    return f"{flag}: unknown flag{configuration.nearest(flag, names)}"


def _check_resume(flags):
    """Check that --resume names a run and that no flag conflicts with it. Raises: ConfigError."""
    if flags.logdir:
        raise ConfigError("--logdir: cannot be used with --resume")
    for name in ("preset", "seeds"):
        if getattr(flags, name):
            raise ConfigError(f"--{name}: cannot be used with --resume")
    check_run(flags.resume, "--resume: ")


def check_run(folder, where="", program=Config.PROGRAM):
    """Check that this folder holds a run of the program.

    Raises: ConfigError, whose message begins with `where`."""
    run = Path(folder)
    if not folder or run.is_file():
        raise ConfigError(f"{where}expected the folder of a run, found {str(folder)!r}")
    if not run.is_dir():
        raise ConfigError(f"{where}{folder}: no such folder"
                          + configuration.nearest(run.name, _runs_in(run.parent)))
    if not (run / "config.yaml").is_file():
        inside = ", ".join(_runs_in(run))
        raise ConfigError(f"{where}{folder}: contains no run (no config.yaml)"
                          + (f"; runs inside it: {inside}" if inside else ""))
    if program_of(run) != program:
        raise ConfigError(f"{where}{folder}: is a run of {program_of(run)}, expected one of "
                          f"{program}")


def program_of(folder):
    """The program whose run this is, by a section that the other one's configuration lacks."""
    path = Path(folder) / "config.yaml"
    is_four = path.is_file() and "tokenizer" in configuration.read(path)
    return DREAMER4 if is_four else Config.PROGRAM


def check_own_code(folder, env):
    """Check that the user named the environment of a run that has one of its own, in `env`:

    opening a run must not import code that only its config.yaml names. Raises: ConfigError."""
    path = Path(folder) / "config.yaml"
    found = configuration.load(path, Config).run.env
    if env is not None and env != found:
        raise ConfigError(f"{folder}: is a run in {found}, found --env {env}")
    if runs_own_code(found) and env is None:
        raise ConfigError(f"{path}: run.env: opening this run runs the code of {found}; "
                          f"to do so, add --env {found}")


def runs_own_code(env):
    """Whether making this environment imports a module that its name names.

    One of Gymnasium's own, "gymnasium:ID", does not."""
    return ":" in env.removeprefix(f"{GYMNASIUM}:")


def _runs_in(folder):
    return sorted(path.parent.name for path in Path(folder).glob("*/config.yaml"))


def _config(flags):
    """The Config for the flags of dreamer.py, compared with that of the run to resume."""
    saved = Path(flags.resume) / "config.yaml" if flags.resume else None
    presets = [WORLD_MODEL] if flags.world_model_only else []
    config = resolve(flags, saved if flags.config is None else flags.config, presets)
    if flags.world_model_only:
        _check_world_model_only(config.learning)
    if saved:
        check_unchanged(config, configuration.dump(configuration.load(saved, Config)),
                        flags.resume)
        check_own_code(flags.resume, flags.env)
    return config


def resolve(flags, path=None, presets=()):
    """The Config for the flags of `add_config_flags`.

    The environment's own block, if the file has one, is applied before --preset and --set (for
    one of Gymnasium that of all its environments, then that of its id); `presets` are applied after
    that one, the values of other flags last.

    Raises: ConfigError."""
    path = flags.config if path is None else path
    path = default_config(DEFAULT_CONFIG) if path is None else path
    given = [name for name in FLAGS if getattr(flags, name, None) is not None]
    sets = [*flags.set, *(f"run.{FLAGS[name]}={getattr(flags, name)}" for name in given),
            *(_env_param(text) for text in flags.env_param)]
    named = {f"run.{FLAGS[name]}": f"--{name.replace('_', '-')}" for name in given}
    presets = [*flags.preset, *presets]
    config = configuration.load(path, Config, presets, sets, named)
    known = configuration.presets(path)
    own = [name for name in blocks(config.run.env) if name in known]
    return configuration.load(path, Config, [*own, *presets], sets, named) if own else config


def blocks(env):
    """The blocks that are an environment's own, if the file has them, in order."""
    first, _, one = env.rpartition(":")
    return [GYMNASIUM, one] if first.partition(":")[0] == GYMNASIUM else [env]


def _check_world_model_only(learning):
    """Check that actor and critic are not trained. Raises: ConfigError."""
    for key in ("beta_actor", "beta_critic", "beta_replay"):
        if scale := getattr(learning, key):
            raise ConfigError(f"--world-model-only: expected learning.{key} 0, found {scale:g}")


def _env_param(text):
    """--env-param key=value in the form of --set."""
    key, equals, value = text.partition("=")
    if not (key.strip().isidentifier() and equals and value.strip()):
        raise ConfigError(f"--env-param: expected key=value, found {text!r}")
    return f"run.env_params.{key.strip()}={value}"


def _seeds(flags, config):
    """The number of agents in --seeds, 1 by default."""
    if flags.seeds is None:
        return 1
    most = 2**32 - config.run.seed
    if not flags.seeds.isascii() or not flags.seeds.isdigit() or not 1 <= int(flags.seeds) <= most:
        raise ConfigError(
            f"--seeds: expected a whole number from 1 to {most}, found {flags.seeds!r}")
    return int(flags.seeds)


def check_unchanged(config, text, run):
    """Check that `config` equals that of the run, dumped as `text`, but for what may change.

    Raises: ConfigError naming the keys that differ."""
    changed = configuration.fixed(config, configuration.differences(config, text))
    if changed:
        raise ConfigError(f"--resume: another {', '.join(changed)} than {run} was started with; "
                          f"only {', '.join(config.MAY_CHANGE)} may change")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong flag in one line, without the usage text."""

    def parse_args(self, args=None, namespace=None):
        """Like argparse; from now on Ctrl-C raises KeyboardInterrupt.

        dreamer.py does not call this: Ctrl-C ends it at once until its run listens for signals."""
        start.heed_interrupts()
        return super().parse_args(args, namespace)

    def parse_known_args(self, args=None, namespace=None):
        """Like argparse, but a flag with one value may be given only once.

        Every command begins here: from now on, what the encoding of the output lacks is printed as
        a question mark. Raises: ConfigError."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        args = sys.argv[1:] if args is None else list(args)
        for action in self._actions:
            given = [one for one in args if one.partition("=")[0] in action.option_strings]
            if len(given) > 1 and isinstance(action, argparse._StoreAction):
                raise ConfigError(f"{given[0].partition('=')[0]}: is given {len(given)} times")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        """Called by argparse. Raises: ConfigError."""
        raise ConfigError(message)


def run_parser(name, description):
    """A parser with the arguments of every command on one run: RUN and --env."""
    parser = Parser(f"python -m {name}", description=description, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--env", metavar="ID",
                        help="module:factory of a run in an environment of its own, whose code is "
                        "imported then")
    return parser


def complain(error, program="dreamer.py"):
    """Print a ValueError or an OSError as one line -> exit status 2

    Nothing is left to say, and to nobody, once the reader of the output has gone (`| head -1`)."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the end fails again
        return 0
    warn(one_line(f"{program}: {reason(error)}"))
    return 2


def warn(line):
    """Print a line on the standard error, if it can be written."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def one_line(text):
    """A message on one line of at most WIDEST columns, without control characters

    Long words are cut first; then the middle, since what is wrong comes first, and hints last."""
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    text = re.sub(r"\S{120,}", lambda word: f"{word[0][:100]}...{word[0][-17:]}", text)
    return text if len(text) <= WIDEST else f"{text[:WIDEST - 63]}...{text[-60:]}"


def reason(error, folder=None):
    """One line for an error; for an OSError its file (else the folder) and the reason."""
    if not isinstance(error, OSError):
        return of_program(str(error)) if is_of_program(error) else str(error)
    place = error.filename or folder
    message = (error.strerror or str(error)).lower()
    return f"{place}: {message}" if place else message


def is_of_program(error):
    """Whether a compiled program failed while it ran

    jax raises a JaxRuntimeError, or a plain ValueError that begins with a status, like INTERNAL."""
    return type(error).__name__ == "JaxRuntimeError" or (
        type(error) is ValueError and re.match("[A-Z][A-Z_]+: ", str(error)) is not None)


def of_program(text):
    """The essential line of such an error: for one in a callback its name, place and message."""
    lines = [line for line in text.splitlines() if line.strip()] or ["the compiled program failed"]
    frames = [n for n, line in enumerate(lines) if re.match(r' +File ".+", line \d+', line)]
    ends = [line for line in lines[frames[-1]:] if not line.startswith(" ")] if frames else []
    if not ends:
        return lines[0]
    own = [n for n in frames if "site-packages" not in lines[n]] or frames
    file, line = re.match(r' +File "(.+)", line (\d+)', lines[own[-1]]).groups()
    name, _, message = ends[0].partition(": ")
    return f"{name} in {file}, line {line}: {message or 'no message'}"


def add_config_flags(parser):
    """Add the flags that `resolve` reads."""
    parser.add_argument("--config", metavar="FILE",
                        help="YAML file with every number (default: dreamer.yaml)")
    parser.add_argument("--env", metavar="ID", help="Gymnax environment, gymnasium:ID, "
                        "or your own package.module:factory (run.env)")
    parser.add_argument("--env-param", metavar="KEY=VALUE", action="append", default=[],
                        help="change a parameter of the environment (run.env_params); repeatable")
    parser.add_argument("--seed", metavar="N", help="seed of all randomness (run.seed)")
    parser.add_argument("--steps", metavar="N", help="environment steps (run.steps)")
    parser.add_argument("--preset", metavar="NAME", action="append", default=[],
                        help="overlay a named block of the file; repeatable, the last one wins")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[],
                        help="change one number; repeatable, overrides presets")


def _parser():
    parser = Parser("dreamer.py", description="DreamerV3 on environments of Gymnax and Gymnasium.",
                    add_help=False, allow_abbrev=False)
    add_config_flags(parser)
    parser.add_argument("--list-envs", action="store_true",
                        help="print the environments of Gymnax and their reference scores")
    parser.add_argument("--seeds", metavar="N",
                        help="train N agents in parallel, with seeds from run.seed on (default: 1)")
    parser.add_argument("--logdir", metavar="DIR",
                        help="folder of the run (default: runs/<env>-<seed>-<time>)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    parser.add_argument("--save-replay", metavar="BOOL", choices=("true", "false"),
                        help="false: small checkpoints, without the replay (run.save_replay)")
    parser.add_argument("--episodes", metavar="N",
                        help="episodes per evaluation (run.eval_episodes)")
    parser.add_argument("--world-model-only", action="store_true",
                        help="train the world model alone, without actor and critic")
    parser.add_argument("--print-config", action="store_true",
                        help="print the resolved configuration and exit")
    parser.add_argument("-h", "--help", action="store_true",
                        help="print this, with every hyperparameter, and exit")
    return parser


def default_config(shipped):
    """The file of this name in the current folder, else the shipped one, next to the program."""
    return shipped.name if Path(shipped.name).exists() else shipped


def table(config, shipped):
    """Every hyperparameter: name, value, that of the shipped file's preset `paper`, meaning."""
    paper = configuration.read(shipped)["presets"]["paper"]
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
