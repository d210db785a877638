"""What dreamer.py stands on: numbers, command line, replay, devices, the user's environments."""
