"""An edit after it was made: apply, revert, save, load, export, describe."""
