"""What surrounds the algorithm of ``train_ddpg.py``: configuration, environments, collectors, records, checkpoints."""
