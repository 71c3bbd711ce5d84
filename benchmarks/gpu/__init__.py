"""What a GPU is to show: each part in a process and a share of the time of its own."""
