"""Fetch, verify and prepare data sets and weights. Run a script with --help; the fetching ones need numpy and pillow only, no torch."""
