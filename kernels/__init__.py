"""Triton kernels of seglite, one operation per file. They know nothing of seglite: lift any file together with `backend.py`.

    from kernels.atrous_conv import atrous_conv, aspp, fold_batch_norm
    from kernels.axial_attention import axial_attention, axial_pair, RelativePositions
    from kernels.squeeze_axial import squeeze_axial_attention
    from kernels.dense_crf import mean_field
    from kernels.patch_mix import patch_mix, patch_unmix

Every public operation takes CPU or CUDA tensors. `kernels/backend.py` says which path a call takes and why.
"""
