"""A whole cluster on this machine, one process for each part: behind `tandem up` and the demo.

`LocalCluster` (cluster.py) starts, watches and stops it; `up.py` and `demo.py` are its two users.
Nothing here is on the way of a request.
"""
