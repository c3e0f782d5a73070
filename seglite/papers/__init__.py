"""One file per paper. Each has `Settings`, `SUPERVISION`, `train(run)`, `claim(run)`, `RECIPES` and `DEVIATIONS`."""
