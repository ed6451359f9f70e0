"""The GPU: the only package that imports PyCUDA (`device`) and cuda-bindings (`graphs`), both lazily."""
