"""The GPU: the only package that imports CUDA's own Python modules."""
