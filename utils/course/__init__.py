"""The course: equations, tasks and weeks of the functions in dreamer.py."""
