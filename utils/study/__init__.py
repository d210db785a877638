"""Lists of runs, and the pictures of many of them."""
