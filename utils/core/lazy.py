"""Modules that another package imports at its top and that this program seldom uses."""

import importlib
import sys
import types


class _Later(types.ModuleType):
    """Stands in for a module until something of it is used; then it is imported."""

    def __getattr__(self, name):
        if name.startswith("__"):  # only asked what it is, by tools that look at all modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def import_when_used(*names):
    """Make `import name` cost nothing until something of the module is used.

    Does nothing for a module that is imported already."""
    for name in names:
        sys.modules.setdefault(name, _Later(name))
