"""What one test compiles, no other compiles again, in whatever process."""

import atexit
import os
import shutil
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    FOLDER = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = FOLDER
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
