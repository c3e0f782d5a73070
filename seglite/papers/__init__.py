"""One file per paper. Each has

    Settings            a dataclass over seglite.config.Config: every key of the method with its meaning below
    RECIPES             {"toy": {...}, "small": {...}, "paper": {...}}: presets as key=value overrides
    supervision(config) which annotations training may read
    train(run)          the paper's pipeline in plain Python: run.fit and run.make for its stages, run.report(predict, ...) at the end
    claim(run), CLAIM   the tables of one seed, the paper's own numbers, and the statements to test
    DEVIATIONS          what differs from the paper, where and why

`predict` given to run.report is the contract with everything that comes after training: image float [B, 3, H, W] normalised -> scores
[B, K, h, w]. `python -m seglite.evaluate run=...` and `python -m seglite.predict run=...` get it back from a finished run by walking through
`train(run)` with a run that only loads (seglite/reopen.py). A paper that computes long tables before its report may add

    reopen(run)         -> the same predict, directly
"""
