"""How XLA compiles for the CPU. To be set before jax computes anything."""

import os

# The older of XLA's two code generators. Measured on two cores with jax 0.10.2, the whole training
# chunk: 40% less time to compile, 0.7 instead of 1.2 GB at the peak, the same speed afterwards.
LEAN = "--xla_cpu_use_fusion_emitters=false"


def compile_lean():
    """Ask XLA to compile in less time and memory; what the user set in XLA_FLAGS wins."""
    os.environ["XLA_FLAGS"] = f"{LEAN} {os.environ.get('XLA_FLAGS', '')}".strip()
