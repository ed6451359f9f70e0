"""Inference libraries, one file each, as `stage_rt.networks.Backend`; `stage_rt.loading` chooses among them."""
