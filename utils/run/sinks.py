"""Where metrics go besides metrics.jsonl, if the YAML asks: TensorBoard, Weights & Biases.

Neither package is needed otherwise, and neither is imported before it is asked for. What CleanRL
logs too has its name there, so that runs of both can be laid over each other; one differs here.
"""

import uuid
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
            except ImportError as error:
                raise ValueError(f"log.{key}: {module} cannot be imported ({error}): "
                                 f"pip install {module}") from None


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
    """A run of a project at Weights & Biases, named as the folder; resumed, it goes on there.

    Raises: ValueError, one line, where it cannot begin: nobody is logged in, say."""

    def __init__(self, project, folder, config):
        wandb, identity = import_module("wandb"), folder / "wandb.id"
        if not identity.exists():  # folders of one name in two places are two runs
            identity.write_text(uuid.uuid4().hex, encoding="utf-8")
        try:
            self._run = wandb.init(
                project=project, name=folder.resolve().name, dir=str(folder), resume="allow",
                id=identity.read_text(encoding="utf-8"), config=asdict(config))
        except wandb.Error as error:
            raise ValueError(f"log.wandb: {str(error).splitlines()[0]}") from None

    def metrics(self, step, values):
        """One row of numbers."""
        self._run.log({CLEANRL.get(name, name): value for name, value in values.items()}, step=step)

    def close(self):
        """Say that the run is over."""
        self._run.finish()
