"""Many prompts on many machines: a batch on the workers of a Dask cluster, each with a chain."""
