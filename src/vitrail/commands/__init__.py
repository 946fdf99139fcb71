"""Commands of the command line, one file each: options, call and output."""
