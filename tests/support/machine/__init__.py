"""What a test needs of the machine: ports, programs, processes, control groups, time."""
