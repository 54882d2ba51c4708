"""What a job needs of memory, storage and time, told before it starts."""
