"""Ways to run Tandem: on this machine (`deploy.local`), and later on a cluster."""
