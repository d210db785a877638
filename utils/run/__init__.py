"""A run on disk and on screen: folder, logs, checkpoints, display, signals."""
