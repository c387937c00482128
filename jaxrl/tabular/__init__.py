"""Learning with tables and linear features, step by step as in textbooks.

Pure functions of one run; `jax.vmap` runs many, over keys, step sizes or anything else. A
table is the linear case with one-hot features, so one implementation serves both:

V(s) = wᵀ x(s),    Q(s, a) = w_aᵀ x(s)
"""
