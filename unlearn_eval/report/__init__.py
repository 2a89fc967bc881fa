"""What people look at; reads result files and nothing else."""
