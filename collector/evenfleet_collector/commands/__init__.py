"""The commands of `evenfleet`, one file each."""
