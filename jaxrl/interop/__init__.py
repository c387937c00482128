"""Interoperability: environments of jaxrl in Gymnasium, and agents on its environments."""
