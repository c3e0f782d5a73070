"""seglite: modern semantic segmentation, small enough to read. Start with `lessons/00_start_here.md`.

    python -m seglite.train method=marsstyle      # train a paper's method, end to end
    python -m seglite.claims method=marsstyle     # rerun the paper's claim in miniature, with spread
"""

__version__ = "0.1.0"
