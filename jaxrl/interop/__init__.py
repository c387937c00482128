"""Environments and policies of jaxrl in other libraries, and theirs here."""
