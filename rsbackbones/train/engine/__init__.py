"""The training engine: steps, checkpoints and processes, independent of models, datasets and methods.

:func:`~rsbackbones.train.engine.trainer.train` trains a
:class:`~rsbackbones.train.engine.train_step.TrainRun`, whose module is a
:class:`~rsbackbones.train.engine.module.TrainModule`.
"""
