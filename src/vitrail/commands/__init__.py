"""The commands of the command line: one file each, with its options, its call and its printing."""
