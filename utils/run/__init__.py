"""A run on disk and on the screen: folder, logs, checkpoints, display, signals."""
