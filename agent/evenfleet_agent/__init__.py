"""The agent: runs a release's variants on one device, measures them, and tells the collector what it found."""
