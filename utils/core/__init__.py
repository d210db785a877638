"""The foundations of dreamer.py: settings, command line, replay, devices, user environments."""
