"""What dreamer4.py stands on: its settings, its layers, its optimiser, and the square's world."""
