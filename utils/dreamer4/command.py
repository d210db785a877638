"""The command line of dreamer4.py: which run, with which numbers, from which phase on."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.core import cli
from utils.core import config as configuration
from utils.core.config import ConfigError
from utils.core.machine import ROOT
from utils.dreamer4.settings import PHASES, Config

SHIPPED = ROOT / "dreamer4.yaml"
# Sections that a phase trains with, besides its updates in `run`.
SECTIONS = {"tokenizer": ("world", "tokenizer"), "dynamics": ("dynamics",), "agent": ("agent",),
            "policy": ("imagination",)}


@dataclass(frozen=True)
class Command:
    """A parsed command line: a new run from phase `first` on, or the one to resume in `run`.

    The phases before the first one are taken from the run in the folder `source`."""

    config: Config
    logdir: str | None = None
    run: str | None = None
    first: str = PHASES[0]
    source: str | None = None


def parse(argv=None):
    """Parse a command line into a Command.

    `--help` and `--print-config` print and exit with status 0.

    Raises: ConfigError."""
    parser = _parser()
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(cli.unknown_flag(unknown[0], parser))
    _check(flags)
    first = phase(flags.phase) if flags.phase else PHASES[0]
    config = _config(flags)
    if flags.help:
        print(parser.format_help() + "\n" + cli.table(config, SHIPPED))
        sys.exit(0)
    if flags.print_config:
        print(configuration.dump(config), end="")
        sys.exit(0)
    if flags.run:
        _check_source(config, first, flags.run)
    return Command(config, flags.logdir, flags.resume, first, flags.run)


def phase(text):
    """The name of a phase that is given by name or by number. Raises: ConfigError."""
    known = dict(zip("1234", PHASES)) | dict(zip(PHASES, PHASES))
    if text not in known:
        names = ", ".join(f"{number} ({name})" for number, name in enumerate(PHASES, 1))
        raise ConfigError(f"--phase: expected one of {names}, found {text!r}")
    return known[text]


def _check(flags):
    """Check that no flag conflicts with another one, and the folders. Raises: ConfigError."""
    for name in ("logdir", "preset", "phase", "run") if flags.resume is not None else ():
        if getattr(flags, name):
            raise ConfigError(f"--{name}: cannot be used with --resume")
    later = flags.phase and phase(flags.phase) != PHASES[0]
    if later and not flags.run:
        raise ConfigError(f"--phase {flags.phase}: needs the phases before: add --run RUN")
    if flags.run and not later:
        raise ConfigError("--run: is for --phase 2, 3 or 4, which take the phases before from it")
    for name in ("resume", "run"):
        if getattr(flags, name) is not None:
            cli.check_run(getattr(flags, name), f"--{name}: ", Config.PROGRAM)


def _config(flags):
    """The Config for the flags; by default the numbers of the run that is taken up."""
    taken = flags.resume if flags.resume is not None else flags.run
    saved = Path(taken) / "config.yaml" if taken else cli.default_config(SHIPPED)
    sets, named = list(flags.set), {}
    if flags.seed is not None:
        sets, named = [*sets, f"run.seed={flags.seed}"], {"run.seed": "--seed"}
    path = saved if flags.config is None else flags.config
    config = configuration.load(path, Config, flags.preset, sets, named)
    if flags.resume:
        cli.check_unchanged(config, configuration.dump(configuration.load(saved, Config)),
                            flags.resume)
    return config


def _check_source(config, first, run):
    """Check that the phases before the first one were trained with the same numbers.

    Raises: ConfigError."""
    old = asdict(configuration.load(Path(run) / "config.yaml", Config))
    new = asdict(config)
    for name in PHASES[:PHASES.index(first)]:
        keys = [(section, key) for section in SECTIONS[name] for key in new[section]]
        for section, key in [("run", name), *keys]:
            before, now = old[section][key], new[section][key]
            if before != now:
                raise ConfigError(f"--run: {run} trained its {name} with another {section}.{key}: "
                                  f"{before}, found {now}")


def _parser():
    parser = cli.Parser("dreamer4.py", add_help=False, allow_abbrev=False,
                        description="Dreamer 4 on the bouncing square, in four phases.")
    parser.add_argument("--config", metavar="FILE",
                        help="YAML file with every number (default: dreamer4.yaml)")
    parser.add_argument("--seed", metavar="N", help="seed of all randomness (run.seed)")
    parser.add_argument("--preset", metavar="NAME", action="append", default=[],
                        help="overlay a named block of the file; repeatable, the last one wins")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[],
                        help="change one number; repeatable, overrides presets")
    parser.add_argument("--phase", metavar="N", help="begin with this phase: "
                        + ", ".join(f"{number} {name}" for number, name in enumerate(PHASES, 1)))
    parser.add_argument("--run", metavar="RUN",
                        help="the run from which --phase takes the phases before")
    parser.add_argument("--logdir", metavar="DIR",
                        help="folder of the run (default: runs/square-<seed>-<time>)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    parser.add_argument("--print-config", action="store_true",
                        help="print the resolved configuration and exit")
    parser.add_argument("-h", "--help", action="store_true",
                        help="print this, with every hyperparameter, and exit")
    return parser
