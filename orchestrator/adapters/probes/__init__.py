"""Probes: what the network between members can really do, measured by the agents themselves.

Every peer proves that it holds the cluster's probe key before it is answered or believed.
"""
