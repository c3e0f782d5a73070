"""Backbones and small segmentation networks, with the state-dict names under which the field publishes weights.

Every backbone gives `channels` and `strides` (one number per stage map) and `features(x)`, the list of stage maps from fine to coarse.
"""
