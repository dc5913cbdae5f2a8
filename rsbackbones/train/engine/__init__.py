"""The training engine: steps, checkpoints, processes. It knows no model, no data set and no method.

A run is a :class:`~rsbackbones.train.engine.train_step.TrainRun`;
:func:`~rsbackbones.train.engine.trainer.train` trains it. What is trained is a
:class:`~rsbackbones.train.engine.module.TrainModule`.
"""
