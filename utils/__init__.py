"""Commands, and the rooms with what they are made of: core, run, pictures, study, course."""
