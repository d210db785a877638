"""Where metrics go besides metrics.jsonl, if the YAML asks: TensorBoard, Weights & Biases.

Neither package is needed otherwise, and neither is imported before it is asked for. The names are
CleanRL's, so that runs of both can be laid over each other; metrics.jsonl has one that differs.
"""

from dataclasses import asdict
from importlib import import_module

CLEANRL = {"time/SPS": "charts/SPS"}


def check(log):
    """Are the packages there that the YAML's section `log` asks for?

    Raises: ValueError, one line with what to install, for the first that is not."""
    for key, module, wanted in (("tensorboard", "tensorboardX", log.tensorboard),
                                ("wandb", "wandb", log.wandb)):
        if wanted:
            try:
                import_module(module)
            except ImportError:
                raise ValueError(
                    f"log.{key}: {module} is not installed: pip install {module}") from None


def open_sinks(config, folder, steps):
    """The sinks that the configuration asks for; rows after `steps` of a resumed run are void."""
    sinks = []
    if config.log.tensorboard:
        sinks.append(TensorBoard(folder, steps))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(config.log.wandb, folder, config))
    return sinks


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`."""

    def __init__(self, folder, steps):
        writer = import_module("tensorboardX").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=steps + 1 if steps else None)

    def metrics(self, step, values):
        """One number for each name."""
        for name, value in values.items():
            self._writer.add_scalar(CLEANRL.get(name, name), value, step)
        self._writer.flush()

    def close(self):
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project at Weights & Biases, named as the folder; resumed, it goes on there."""

    def __init__(self, project, folder, config):
        self._run = import_module("wandb").init(
            project=project, name=folder.name, id=folder.name, dir=str(folder), resume="allow",
            config=asdict(config))

    def metrics(self, step, values):
        """One row of numbers."""
        self._run.log({CLEANRL.get(name, name): value for name, value in values.items()}, step=step)

    def close(self):
        """Say that the run is over."""
        self._run.finish()
