"""A fleet in virtual time, from one seed, with whatever can go wrong."""
