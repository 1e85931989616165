"""The training loop and what joins it: schedules, evaluation, checkpoints, several processes."""
