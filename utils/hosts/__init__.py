"""Many processes, on one machine or many: how they find each other, agree and end together."""
