"""The course: which function is which equation and task."""
