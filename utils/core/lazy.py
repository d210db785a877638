"""Lazy import of modules that another package imports at its top and that are seldom used."""

import importlib
import sys
import types


class _Later(types.ModuleType):
    """A placeholder for a module, which is imported when an attribute of it is used."""

    def __getattr__(self, name):
        if name.startswith("__"):  # tools that inspect all modules must not trigger the import
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def import_when_used(*names):
    """Defer `import name` until an attribute of the module is used.

    Modules that are already imported are left alone."""
    for name in names:
        sys.modules.setdefault(name, _Later(name))
