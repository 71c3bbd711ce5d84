"""What people see of simulated runs: a table, JSON, plots, a page, a trace for Perfetto."""
