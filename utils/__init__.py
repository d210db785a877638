"""Small files, one idea each; none of them knows the algorithm."""
