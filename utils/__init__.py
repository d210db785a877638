"""Commands, and the packages behind them: core, run, pictures, study, course."""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)  # a user's project may have its own `utils`

from utils.core import start

start.begin()  # before imports that fail on an old Python or without a package
