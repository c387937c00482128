"""Learning with tables and linear features, step by step as the textbooks have it.

Pure functions of one run; `jax.vmap` makes them functions of many, over keys, step sizes
or anything else. A table is the linear case with one-hot features, so there is one code:

V(s) = wᵀ x(s),    Q(s, a) = w_aᵀ x(s)
"""
