"""Dreamer 4 around dreamer4.py: layers, optimiser, the square's world, runs, pictures, commands."""
