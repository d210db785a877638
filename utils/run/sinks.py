"""Optional sinks of the metrics besides metrics.jsonl: TensorBoard, Weights & Biases.

Their packages are imported only if the YAML enables them. Metrics that CleanRL also logs get
CleanRL's names, so that runs of both can be compared; one name differs from ours.
"""

import uuid
from dataclasses import asdict
from importlib import import_module

CLEANRL = {"time/SPS": "charts/SPS"}


def check(log):
    """Check that the packages for the YAML's section `log` are installed.

    Raises: ValueError, one line that says what to install."""
    for key, module, wanted in (("tensorboard", "tensorboardX", log.tensorboard),
                                ("wandb", "wandb", log.wandb)):
        if wanted:
            try:
                import_module(module)
            except ImportError as error:
                raise ValueError(f"log.{key}: {module} cannot be imported ({error}): "
                                 f"pip install {module}") from None


def open_sinks(config, folder, steps):
    """Open the configured sinks; rows after step `steps` of a resumed run are discarded."""
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
        """Write one number per name."""
        for name, value in values.items():
            self._writer.add_scalar(CLEANRL.get(name, name), value, step)
        self._writer.flush()

    def close(self):
        """Flush and close the files."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project, named like the folder; --resume continues it.

    Raises: ValueError, one line, if it cannot start, for example without a login."""

    def __init__(self, project, folder, config):
        wandb, identity = import_module("wandb"), folder / "wandb.id"
        if not identity.exists():  # folders of the same name in two places are two runs
            identity.write_text(uuid.uuid4().hex, encoding="utf-8")
        try:
            self._run = wandb.init(
                project=project, name=folder.resolve().name, dir=str(folder), resume="allow",
                id=identity.read_text(encoding="utf-8"), config=asdict(config))
        except wandb.Error as error:
            raise ValueError(f"log.wandb: {str(error).splitlines()[0]}") from None

    def metrics(self, step, values):
        """Write one row of numbers."""
        self._run.log({CLEANRL.get(name, name): value for name, value in values.items()}, step=step)

    def close(self):
        """Mark the run as finished."""
        self._run.finish()
