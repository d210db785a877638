"""What is about to run, in lines for people: device, environment, parameters by part."""

import jax

from utils.parallel import sharers


def describe(config, env, shapes):
    """Lines to print before anything is compiled."""
    parts = parameter_counts(shapes)
    device = jax.devices()[0]
    counts = " · ".join(f"{name} {count:,}" for name, count in parts.items())
    return [
        f"device       {sharers(config)} x {device.platform} ({device.device_kind})",
        f"environment  {env.describe()}",
        f"parameters   {sum(parts.values()):,}: {counts}",
        "compiling    (the chunk of training takes longest) ...",
    ]


def parameter_counts(shapes):
    """Number of weights by part, from shapes alone; the slow critic, a copy, is not counted."""
    world = shapes["world"]
    parts = {
        "encoder": world["encoder"],
        "dynamics": [world[name] for name in ("sequence", "prior", "posterior")],
        "decoder": world["decoder"],
        "reward": world["reward"],
        "continue": world["continue_"],
        "actor": shapes["actor"],
        "critic": shapes["critic"],
    }
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()}
