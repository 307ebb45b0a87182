"""Learned optimizers that train each other, from a random start (Metz et al., arXiv 2101.07367)."""
