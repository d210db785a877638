"""Environments: what they have in common, and those that the host steps."""
