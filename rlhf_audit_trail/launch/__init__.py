"""What `rlhf-audit run` puts on the path of the processes it starts; see `sitecustomize.py`."""
