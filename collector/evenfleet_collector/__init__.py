"""The collector: takes in what agents measured, judges it, shows it, and says which release a device runs."""
