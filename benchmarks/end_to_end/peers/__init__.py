"""The job as each system's own documentation teaches it. Each module is a process of that system."""
