"""The box of one Ray node: what a tenant's code can reach, and how every trace of it goes again.

records (what is asked) · command, seccomp (pure: how bubblewrap is called) · init (the first program inside) · cgroups,
scratch, network (what the kernel must hold for it) · box (all of it, in order) · tiers (what works here).
"""
