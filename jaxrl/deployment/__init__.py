"""A trained policy outside the laboratory: exported, served, described, published."""
