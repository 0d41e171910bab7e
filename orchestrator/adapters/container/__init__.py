"""The stronger tier: the same node as in a box, in a container that podman makes.

What it has above a box: the program's own list of allowed system calls with the box's own refusals taken out of it,
device rules that the kernel keeps also under cgroup v2, whatever the machine's security module adds, GPUs as their
vendor's own description (CDI) has them, and a root directory that can be an image instead of the host's /usr.
"""
